"""The sections of a report of one run: from the files in its folder, and from its predictions on samples."""

import io
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from bpfree.data import Split
from bpfree.disk.plain import is_number
from bpfree.lab.report import html
from bpfree.lab.report.charts import learning_curves, tracked_curves
from bpfree.lab.report.format import heads, megabytes, number, seconds
from bpfree.lab.report.html import Cell, Column, Section
from bpfree.lab.report.records import Recorded, mapping
from bpfree.pictures.confusion import MOST_CLASSES, ClassPredictions, confusion_figure, predict_classes
from bpfree.pictures.numbers import predict_numbers, rollout
from bpfree.runs.folder import CONFIG
from bpfree.tasks import Classify, Regress, Sequence
from bpfree.trackers import MEASURES

if TYPE_CHECKING:
    from bpfree.runs.run import Run

_MOST_IN_TABLE = 100  # classes; a table of more would be too long to read
_COST = "cost"  # a tracker of the whole training, not of its layers
_DRAWN = {  # files in plots/: name, description for readers who cannot see it, caption
    "reconstructions.png": ("samples above their reconstructions", "Above: samples. Below: their reconstructions."),
    "accuracy_by_step.png": ("accuracy by step of inference", "The accuracy if inference stopped after each step."),
    "loss_by_step.png": ("loss by step of inference", "The loss if inference stopped after each step."),
    "denoising.gif": ("samples that move from noise to a class", "Inference moves each sample from noise to a class."),
    "denoising.png": ("predictions after each step, for some samples", "The prediction after each step of inference."),
    "loss_by_block.png": ("training loss of each block", "The training loss of each block. Blocks learn separately."),
    "schedule.png": ("noise schedule", "The noise schedule."),
    "embeddings.png": ("class embeddings and ends of inference", "The class embeddings, and where inference ends."),
}


class Subject(NamedTuple):
    """A run, and everything that its report is made of.

    Attributes:
        recorded: the files of the run as plain values.
        run: the run with its weights, or None if they cannot be loaded.
        split: the samples whose predictions are shown, or None if there are none.
        which: what the samples are, such as "test samples".
        pictures: the pictures that were drawn for this report, by their paths; None for those that are shown as files.
        missing: sentences that say what the report cannot show, and why.
    """

    recorded: Recorded
    run: "Run | None" = None
    split: Split | None = None
    which: str = ""
    pictures: Mapping[Path, Figure | None] = {}
    missing: list[str] = []


def sections_of(subject: Subject) -> list[Section]:
    """Return the sections of a report in order; sections that would be empty are left out.

    Args:
        subject: the run.
    """
    recorded = subject.recorded
    sections = [
        Section("Result", _result(subject)),
        Section("Learning curves", _curves(recorded)),
        Section("Measured while training", _tracked(recorded)),
        *_classification(subject),
        *_regression(subject),
        Section("Reconstructions", _drawn(subject, "reconstructions.png")),
        Section("Inside NoProp", _drawn(subject, *list(_DRAWN)[1:])),
        Section("Cost", _cost(recorded)),
        Section("Run it again", _again(recorded)),
    ]
    return [section for section in sections if section.parts]


def state_of(recorded: Recorded) -> str:
    """Return the state of a run in a few words, such as "finished" or "not finished: 2 of 5 epochs".

    Args:
        recorded: the run.
    """
    done, planned = len(recorded.history), recorded.option("train", "epochs")
    if recorded.is_over:
        # A damaged config may name no number, or a number as text.
        stopped = is_number(planned) and done < planned
        why = f": {recorded.stopped}" if recorded.stopped else ""
        return f"stopped early, after {done} of {planned} epochs{why}" if stopped else "finished"
    return f"not finished: {done} of {planned if is_number(planned) else '?'} epochs"


def lead_of(recorded: Recorded) -> str:
    """Return one sentence about a run: its rule, net, data and state, and its first test metric.

    Args:
        recorded: the run.
    """
    rule, net, data = (_text(recorded.option(section)) for section in ("rule", "net", "data"))
    test = "".join(
        f", test {name} {number(value)}" for name, value in list(_whole(recorded.metrics("test")).items())[:1]
    )
    return f"{rule} trains {net} on {data}: {state_of(recorded)}{test}."


def _result(subject: Subject) -> list[Markup]:
    """Return the metrics and the main options of a run, and what is missing in the report."""
    recorded = subject.recorded
    config, result = recorded.config, recorded.result
    splits = ((split, recorded.metrics(split)) for split in ("test", "validation"))
    pairs = {
        f"{split.capitalize()} {name}": number(value)
        for split, metrics in splits
        for name, value in _whole(metrics).items()
    }
    pairs |= {"Rule": _text(recorded.option("rule")), "Net": _text(recorded.option("net"))}
    pairs |= {"Data": _text(recorded.option("data")), "Task": _text(recorded.option("task"))}
    pairs |= {"State": state_of(recorded), "Seed": _text(recorded.option("train", "seed"))}
    if result.get("weights") == "best":
        pairs["Weights"] = f"best, of epoch {_text(result.get('best_epoch'))}"
    pairs |= {f"Control: {name}": _listed(values) for name, values in mapping(result.get("controls")).items()}
    messages = [] if recorded.is_over else [html.warning(_unfinished(recorded))]
    messages += [html.warning(note) for note in recorded.notes]
    messages += [html.paragraph(why) for why in subject.missing]
    return [html.facts(pairs), *messages] if config or result else messages


def _unfinished(recorded: Recorded) -> str:
    """Return the sentences that say why a run has no result."""
    if recorded.stopped:
        text = f"The run has no result. It stopped because: {recorded.stopped.rstrip('.')}."
    else:
        text = "The run has no result yet: it is still training, or its process was killed."
    if recorded.history:
        return f"{text} This report shows the epochs that were completed."
    return f"{text} No epoch was completed."


def _curves(recorded: Recorded) -> list[Markup]:
    """Return the learning curve of each metric."""
    best = recorded.result.get("best_epoch") if recorded.result.get("weights") == "best" else None
    figures = learning_curves(recorded.history, best_epoch=best if is_number(best) else None)
    return [html.picture(figure, alt=f"{metric} over the epochs") for metric, figure in figures.items()]


def _tracked(recorded: Recorded) -> list[Markup]:
    """Return a picture of each tracker; its caption is the first line of the tracker's docstring.

    The tracker `cost` is left out. It measures the whole training, and its curves are in the section "Cost".
    """
    parts = []
    for tracker, quantity, figure in tracked_curves([r for r in recorded.tracked if r["tracker"] != _COST]):
        kind = MEASURES.get(tracker)
        about = (kind.__doc__ or "").strip().partition("\n")[0] if kind and kind.unit != "" else ""
        caption = f"{tracker}. {about}" if about else f"{tracker}: {quantity}" if quantity != tracker else tracker
        parts.append(html.picture(figure, alt=f"{tracker}: {quantity} by layer over the steps", caption=caption))
    return parts


def _classification(subject: Subject) -> list[Section]:
    """Return the confusion matrix and the wrong predictions, if the run classifies and there are samples."""
    run, split = subject.run, subject.split
    if run is None or split is None or not isinstance(run.task, Classify):
        return []
    answers = predict_classes(run, split)
    matrix = answers.confusion() if answers.classes <= MOST_CLASSES else None
    wrong = int((answers.true != answers.predicted).sum())
    note = f"{wrong:,} of {len(answers.true):,} {subject.which} are classified wrongly."
    confused = [] if matrix is None else [html.picture(confusion_figure(matrix, answers.names), alt="confusion matrix")]
    if matrix is not None and answers.classes <= _MOST_IN_TABLE:
        confused = [html.beside(*confused, _by_class(matrix, answers))]
    return [
        Section("Confusion", confused, note),
        Section("Most confident mistakes", _wrong(run, answers), "Wrong predictions with the highest probability."),
    ]


def _regression(subject: Subject) -> list[Section]:
    """Return predicted and true numbers, if the task is regress or sequence and there are samples."""
    run, split = subject.run, subject.split
    if run is None or split is None:
        return []
    if isinstance(run.task, Regress):
        answers = predict_numbers(run, split)
        # One figure for each number, so that a phone can show one below the other.
        figures = [html.picture(answers.figure([d]), alt="predicted against true values") for d in answers.shown]
        note = f"Each dot is one of {len(answers.true):,} {subject.which}. Dots on the line are right."
        return [Section("Predicted and true", figures, note)]
    if isinstance(run.task, Sequence):
        windows = rollout(run, split)
        shown = range(len(windows.truth))
        figures = [html.picture(windows.figure([n]), alt=f"predictions and truth, window {n}") for n in shown]
        alone = "The net reads the beginning of a window. Then its own predictions are its inputs."
        note = alone if windows.valid is not None else "The net reads the true values and predicts each next step."
        return [Section("Predictions and truth", figures, f"The first {len(shown)} {subject.which}. {note}")]
    return []


def _by_class(matrix: Tensor, answers: ClassPredictions) -> Markup:
    """Return a table of the classes: samples, recall, precision and the most frequent wrong prediction.

    Args:
        matrix: counts [C, C], true classes in the rows and predicted classes in the columns.
        answers: the predictions.
    """
    columns = [
        Column("Class", numeric=answers.names is None),
        Column("Samples"),
        Column("Recall", "right, of this class"),
        Column("Precision", "right, of these predictions"),
        Column("Most frequent mistake", "predicted class"),
    ]
    rows: list[list[Cell | str]] = []
    for k, row in enumerate(matrix.tolist()):
        samples, right, predicted_as = sum(row), row[k], int(matrix[:, k].sum())
        other = max((j for j in range(len(row)) if j != k), key=lambda j: row[j])  # a task has two classes or more
        mistake = Cell(f"{answers.name(other)} ({row[other]}\u00d7)", other) if row[other] else "\u2013"
        rows.append([answers.name(k), str(samples), _share(right, samples), _share(right, predicted_as), mistake])
    return html.table(columns, rows, caption="Each class")


def _share(part: int, whole: int) -> Cell:
    """Return a share as a cell in percent; a dash if the whole is 0."""
    return Cell(f"{part / whole:.1%}", part / whole) if whole else Cell("\u2013")


def _wrong(run: "Run", answers: ClassPredictions) -> list[Markup]:
    """Return the wrong predictions with the highest probability: as images, or as a table for other samples.

    Args:
        run: the run, which knows how its samples become images.
        answers: its predictions.

    Returns:
        One part, or an empty list if all predictions are right.
    """
    positions = answers.most_wrong()
    images = answers.images(run, positions)
    labels = ((int(n), int(answers.true[n]), int(answers.predicted[n])) for n in positions)
    rows = [(n, answers.name(true), answers.name(guess), float(answers.probability[n])) for n, true, guess in labels]
    if images is None:
        numeric = answers.names is None
        columns = [Column("Sample"), *(Column(title, numeric=numeric) for title in ("True class", "Predicted"))]
        cells: list[list[Cell | str]] = [[str(n), i, j, Cell(f"{p:.1%}", p)] for n, i, j, p in rows]
        return (
            [html.table([*columns, Column("Probability")], cells, caption="Samples are numbered from 0")]
            if cells
            else []
        )
    items = [
        (_png(image), f"sample {n} of class {true}", f"true {true}, predicted {predicted} ({p:.1%})")
        for image, (n, true, predicted, p) in zip(images, rows, strict=True)
    ]
    return [html.gallery(items)] if items else []


def _png(image: Tensor) -> bytes:
    """Return the PNG of an image [1 or 3, H, W] with values in [0, 1]."""
    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).squeeze(2).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _drawn(subject: Subject, *names: str) -> list[Markup]:
    """Return those of the named pictures that were drawn for this report: as SVG if possible, else as images."""
    paths = {path.name: path for path in subject.pictures}
    there = [(paths[name], *_DRAWN[name]) for name in names if name in paths]
    return [
        html.image(path, alt=alt, caption=caption)
        if (figure := subject.pictures[path]) is None
        else html.picture(figure, alt=alt, caption=caption)
        for path, alt, caption in there
    ]


def _cost(recorded: Recorded) -> list[Markup]:
    """Return time, memory and parameters of a run, the time of its trackers, and the curves of the tracker `cost`."""
    result, last = recorded.result, recorded.history[-1] if recorded.history else {}
    paces = [r["samples_per_second"] for r in recorded.history if is_number(r.get("samples_per_second"))]
    pairs = {
        "Wall time": seconds(result.get("wall_seconds", last.get("seconds"))),
        "CPU time": seconds(result.get("cpu_seconds", last.get("cpu_seconds"))),
        "Samples per second": number(round(sum(paces) / len(paces))) if paces else "\u2013",
        "Peak memory of one step": megabytes(result.get("step_memory_bytes")),
        "Growth of the process": megabytes(result.get("memory_growth_bytes")),
        "Peak memory of the process": megabytes(result.get("peak_memory_bytes")),
        "Parameters of the net": number(result.get("parameters")),
        "Parameters of the rule": number(result.get("rule_parameters")),
        "Heads": heads(result),
        "Device": _text(result.get("device")),
        "Threads": _text(result.get("threads")),
        "Precision": _text(result.get("precision", recorded.option("train", "precision"))),
    }
    facts = {name: text for name, text in pairs.items() if text != "\u2013"}
    trackers = mapping(result.get("trackers"))
    facts |= {f"Time of tracker {name}": seconds(mapping(cost).get("seconds")) for name, cost in trackers.items()}
    measured = tracked_curves([r for r in recorded.tracked if r["tracker"] == _COST])
    curves = [html.picture(figure, alt=f"{quantity} over the steps") for _, quantity, figure in measured]
    return [*([html.facts(facts)] if facts else []), *curves]


def _again(recorded: Recorded) -> list[Markup]:
    """Return the commands that repeat or resume a run, the versions it was trained with, and its config."""
    if recorded.folder is None:
        return [html.code(_yaml(recorded.config))]
    run = recorded.folder
    command = ["bpfree", "train", str(run / CONFIG), "--out", str(run.with_name(f"{run.name}-again"))]
    parts = [html.code(shlex.join(command))]  # quoted: the name of a folder may hold spaces or "$"
    if not recorded.is_over:
        parts += [
            html.paragraph("Or resume the run:"),
            html.code(shlex.join(["bpfree", "train", "--resume", str(run)])),
        ]
    if versions := mapping(recorded.result.get("versions")):
        parts.append(html.facts({name: _text(version) for name, version in versions.items()}))
    return [*parts, html.details("Config", [html.code(_yaml(recorded.config))])]


def _yaml(config: dict[str, Any]) -> str:
    """Return a config as YAML, in its own order of keys."""
    # `safe_dump` writes plain values only, so no tag in a strange config can reach a reader's `yaml.load`.
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True).rstrip()


def _text(value: Any) -> str:
    """Return a value as text; a dash for None."""
    return "\u2013" if value is None else str(value)


def _listed(values: Any) -> str:
    """Return metrics on one line, such as "accuracy 0.9722, loss 0.1"."""
    return ", ".join(f"{name} {number(value)}" for name, value in mapping(values).items())


def _whole(metrics: dict[str, float]) -> dict[str, float]:
    """Return the metrics of the whole net, accuracy before loss; "loss/fc1" is the loss of one unit."""
    return {name: metrics[name] for name in sorted(metrics) if "/" not in name}
