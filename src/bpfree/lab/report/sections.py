"""What a report says of one run: its sections, from what the folder tells and what the net answers."""

import io
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from bpfree.data import Split
from bpfree.lab.report import html
from bpfree.lab.report.charts import learning_curves, tracked_curves
from bpfree.lab.report.format import megabytes, number, seconds
from bpfree.lab.report.html import Cell, Column, Section
from bpfree.lab.report.records import Recorded, is_number, mapping
from bpfree.pictures.confusion import MOST_CLASSES, ClassPredictions, confusion_figure, predict_classes
from bpfree.pictures.numbers import predict_numbers, rollout
from bpfree.runs.folder import CONFIG
from bpfree.tasks import Classify, Regress, Sequence
from bpfree.trackers import TRACKERS

if TYPE_CHECKING:
    from bpfree.runs.run import Run

_TALKED_OF = 100  # classes; of more there is no table
_COST = "cost"  # the tracker that tells of the whole training, not of layers
_DRAWN = {  # pictures that are there already: their names, what they show, and what to say of them
    "reconstructions.png": ("samples above what the net makes of them", "Above: samples. Below: what the net makes."),
    "accuracy_by_step.png": ("accuracy by step of inference", "Accuracy if inference ended after each step."),
    "loss_by_step.png": ("loss by step of inference", "Loss if inference ended after each step."),
    "denoising.gif": ("samples on their way from noise to the answer", "Samples on their way from noise."),
    "denoising.png": ("answers step by step, for some samples", "The answer, step by step."),
    "loss_by_block.png": ("training loss of each block", "Each block learns from a loss of its own."),
    "schedule.png": ("noise schedule", "The noise schedule."),
    "embeddings.png": ("embeddings of the classes and ends of inference", "Where inference ends, and the classes."),
}


class Subject(NamedTuple):
    """A run to report on.

    Attributes:
        recorded: what its folder tells.
        run: with its weights, or None if they could not be loaded.
        split: samples to look at, or None.
        which: whose they are, such as "test samples".
        pictures: that were drawn just now.
        missing: what the report cannot show, and why.
    """

    recorded: Recorded
    run: "Run | None" = None
    split: Split | None = None
    which: str = ""
    pictures: list[Path] = []
    missing: list[str] = []


def sections_of(subject: Subject) -> list[Section]:
    """All there is to say, in order; sections that would be empty are left out."""
    recorded = subject.recorded
    sections = [
        Section("Result", _result(subject)),
        Section("Learning curves", _curves(recorded)),
        Section("Measured while training", _tracked(recorded)),
        *_answers(subject),
        *_numbers(subject),
        Section("Reconstructions", _drawn(subject, "reconstructions.png")),
        Section("Inside NoProp", _drawn(subject, *list(_DRAWN)[1:])),
        Section("Cost", _cost(recorded)),
        Section("Run it again", _again(recorded)),
    ]
    return [section for section in sections if section.parts]


def state_of(recorded: Recorded) -> str:
    """Whether a run is over, in a few words."""
    done, planned = len(recorded.history), recorded.option("train", "epochs")
    if recorded.is_over:
        stopped = is_number(planned) and done < planned
        return f"stopped early, after {done} of {planned} epochs" if stopped else "finished"
    return f"not finished: {done} of {planned if is_number(planned) else '?'} epochs"


def lead_of(recorded: Recorded) -> str:
    """A run in a sentence."""
    rule, net, data = (_said(recorded.option(section)) for section in ("rule", "net", "data"))
    test = "".join(
        f", test {name} {number(value)}" for name, value in list(_whole(recorded.metrics("test")).items())[:1]
    )
    return f"{rule} trains {net} on {data}: {state_of(recorded)}{test}."


def _result(subject: Subject) -> list[Markup]:
    recorded = subject.recorded
    config, result = recorded.config, recorded.result
    splits = ((split, recorded.metrics(split)) for split in ("test", "validation"))
    pairs = {
        f"{split.capitalize()} {name}": number(value) for split, own in splits for name, value in _whole(own).items()
    }
    pairs |= {"Rule": _said(recorded.option("rule")), "Net": _said(recorded.option("net"))}
    pairs |= {"Data": _said(recorded.option("data")), "Task": _said(recorded.option("task"))}
    pairs |= {"State": state_of(recorded), "Seed": _said(recorded.option("train", "seed"))}
    if result.get("weights") == "best":
        pairs["Weights"] = f"the best, of epoch {_said(result.get('best_epoch'))}"
    pairs |= {f"Beside it, {name}": _listed(values) for name, values in mapping(result.get("controls")).items()}
    told = [] if recorded.is_over else [html.warning(_unfinished(recorded))]
    told += [html.warning(note) for note in recorded.notes]
    told += [html.paragraph(why) for why in subject.missing]
    return [html.facts(pairs), *told] if config or result else told


def _unfinished(recorded: Recorded) -> str:
    if recorded.stopped:
        text = f"There is no result. Why the run stopped: {recorded.stopped.rstrip('.')}."
    else:
        text = "There is no result: the run is still going on, or was killed."
    return f"{text} What follows is how far it came." if recorded.history else f"{text} No epoch was completed."


def _curves(recorded: Recorded) -> list[Markup]:
    best = recorded.result.get("best_epoch") if recorded.result.get("weights") == "best" else None
    figures = learning_curves(recorded.history, best_epoch=best if is_number(best) else None)
    return [html.picture(figure, alt=f"{metric} over the epochs") for metric, figure in figures.items()]


def _tracked(recorded: Recorded) -> list[Markup]:
    parts = []
    for tracker, what, figure in tracked_curves([r for r in recorded.tracked if r["tracker"] != _COST]):
        known = TRACKERS.get(tracker)
        about = (known.__doc__ or "").strip().partition("\n")[0] if known and known.unit != "" else ""
        caption = f"{tracker}. {about}" if about else f"{tracker}: {what}" if what != tracker else tracker
        parts.append(html.picture(figure, alt=f"{tracker}: {what} by layer over the steps", caption=caption))
    return parts


def _answers(subject: Subject) -> list[Section]:
    """Confusion and wrong answers of a run that classifies samples at hand."""
    run, split = subject.run, subject.split
    if run is None or split is None or not isinstance(run.task, Classify):
        return []
    answers = predict_classes(run, split)
    matrix = answers.confusion() if answers.classes <= MOST_CLASSES else None
    wrong = int((answers.true != answers.predicted).sum())
    note = f"{wrong:,} of {len(answers.true):,} {subject.which} are wrong."
    confused = [] if matrix is None else [html.picture(confusion_figure(matrix, answers.names), alt="confusion matrix")]
    if matrix is not None and answers.classes <= _TALKED_OF:
        confused = [html.beside(*confused, _by_class(matrix, answers))]
    return [
        Section("Confusion", confused, note),
        Section("Surest mistakes", _wrong(run, answers), "The wrong answers with the highest probability."),
    ]


def _numbers(subject: Subject) -> list[Section]:
    """Predictions of a run that gives numbers, for samples at hand."""
    run, split = subject.run, subject.split
    if run is None or split is None:
        return []
    if isinstance(run.task, Regress):
        answers = predict_numbers(run, split)
        figures = [html.picture(answers.figure([d]), alt="predicted against true values") for d in answers.shown]
        note = f"Each dot is one of {len(answers.true):,} {subject.which}; on the line, a prediction is right."
        return [Section("Predicted and true", figures, note)]
    if isinstance(run.task, Sequence):
        windows = rollout(run, split)
        shown = range(len(windows.truth))
        figures = [html.picture(windows.figure([n]), alt=f"predictions beside the truth, window {n}") for n in shown]
        alone = "Once it has seen its part of a window, the net goes on by its own predictions."
        note = alone if windows.valid is not None else "What the net says of each next step."
        return [Section("Predictions beside the truth", figures, f"The first {len(shown)} {subject.which}. {note}")]
    return []


def _by_class(matrix: Tensor, answers: ClassPredictions) -> Markup:
    """How each class fares."""
    columns = [
        *(
            Column("Class", numeric=answers.names is None),
            Column("Samples"),
            Column("Found", "of this class"),
            Column("Right", "of these answers"),
        ),
        Column("Taken for", "most often"),
    ]
    rows: list[list[Cell | str]] = []
    for k, row in enumerate(matrix.tolist()):
        there, hit, said = sum(row), row[k], int(matrix[:, k].sum())
        other = max((j for j in range(len(row)) if j != k), key=lambda j: row[j])
        taken = Cell(f"{answers.name(other)} ({row[other]}\u00d7)", other) if row[other] else "\u2013"
        rows.append([answers.name(k), str(there), _share(hit, there), _share(hit, said), taken])
    return html.table(columns, rows, caption="By class")


def _share(part: int, whole: int) -> Cell:
    return Cell(f"{part / whole:.1%}", part / whole) if whole else Cell("\u2013")


def _wrong(run: "Run", answers: ClassPredictions) -> list[Markup]:
    positions = answers.most_wrong()
    images = answers.images(run, positions)
    labels = ((int(n), int(answers.true[n]), int(answers.predicted[n])) for n in positions)
    rows = [(n, answers.name(true), answers.name(said), float(answers.probability[n])) for n, true, said in labels]
    if images is None:
        numeric = answers.names is None
        columns = [Column("Sample"), *(Column(title, numeric=numeric) for title in ("True class", "Answer"))]
        cells: list[list[Cell | str]] = [[str(n), i, j, Cell(f"{p:.1%}", p)] for n, i, j, p in rows]
        return (
            [html.table([*columns, Column("Probability")], cells, caption="The number of a sample counts from 0")]
            if cells
            else []
        )
    items = [
        (_png(image), f"sample {n}, of class {true}", f"{true}, taken for {said} ({p:.1%})")
        for image, (n, true, said, p) in zip(images, rows, strict=True)
    ]
    return [html.gallery(items)] if items else []


def _png(image: Tensor) -> bytes:
    """An image [1 or 3, H, W] with values in [0, 1]."""
    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).squeeze(2).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _drawn(subject: Subject, *names: str) -> list[Markup]:
    paths = {path.name: path for path in subject.pictures}
    there = [(paths[name], *_DRAWN[name]) for name in names if name in paths]
    return [html.image(path, alt=alt, caption=caption) for path, alt, caption in there]


def _cost(recorded: Recorded) -> list[Markup]:
    result, last = recorded.result, recorded.history[-1] if recorded.history else {}
    paces = [r["samples_per_second"] for r in recorded.history if is_number(r.get("samples_per_second"))]
    pairs = {
        "Wall time": seconds(result.get("wall_seconds", last.get("seconds"))),
        "CPU time": seconds(result.get("cpu_seconds", last.get("cpu_seconds"))),
        "Samples a second": number(round(sum(paces) / len(paces))) if paces else "\u2013",
        "Memory of a step": megabytes(result.get("step_memory_bytes")),
        "Memory of the process": megabytes(result.get("peak_memory_bytes")),
        "Parameters": number(result.get("parameters")),
        "Parameters of the rule": number(result.get("rule_parameters")),
        "Device": _said(result.get("device")),
        "Threads": _said(result.get("threads")),
        "Precision": _said(result.get("precision", recorded.option("train", "precision"))),
    }
    known = {name: text for name, text in pairs.items() if text != "\u2013"}
    watched = mapping(result.get("trackers"))
    spent = {f"Watching {name}": seconds(mapping(cost).get("seconds")) for name, cost in watched.items()}
    own = tracked_curves([r for r in recorded.tracked if r["tracker"] == _COST])
    curves = [html.picture(figure, alt=f"{what} over the steps") for _, what, figure in own]
    return [*([html.facts({**known, **spent})] if known or spent else []), *curves]


def _again(recorded: Recorded) -> list[Markup]:
    if recorded.folder is None:
        return [html.code(_yaml(recorded.config))]
    run = recorded.folder
    command = ["bpfree", "train", str(run / CONFIG), "--out", str(run.with_name(f"{run.name}-again"))]
    parts = [html.code(shlex.join(command))]
    if not recorded.is_over:
        parts += [html.paragraph("Or go on with it:"), html.code(shlex.join(["bpfree", "train", "--resume", str(run)]))]
    if versions := mapping(recorded.result.get("versions")):
        parts.append(html.facts({name: _said(version) for name, version in versions.items()}))
    return [*parts, html.details("Config", [html.code(_yaml(recorded.config))])]


def _yaml(config: dict[str, Any]) -> str:
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True).rstrip()


def _said(value: Any) -> str:
    return "\u2013" if value is None else str(value)


def _listed(values: Any) -> str:
    return ", ".join(f"{name} {number(value)}" for name, value in mapping(values).items())


def _whole(metrics: dict[str, float]) -> dict[str, float]:
    """Those of the whole net, what counts first."""
    return {name: metrics[name] for name in sorted(metrics) if "/" not in name}
