"""A report: one or several runs as one HTML file. It also draws the pictures in the run folders anew."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from bpfree.data import Split
from bpfree.disk.paths import user_path
from bpfree.disk.plain import is_number
from bpfree.errors import UserError
from bpfree.lab.report import html
from bpfree.lab.report.charts import overlaid_curves
from bpfree.lab.report.format import megabytes, number, seconds
from bpfree.lab.report.html import Cell, Column, Section
from bpfree.lab.report.records import Recorded, epochs, measurements, read_run
from bpfree.lab.report.sections import Subject, lead_of, sections_of, state_of
from bpfree.pictures.draw import draw_figures
from bpfree.runs.folder import CONFIG, PLOTS
from bpfree.runs.load import load
from bpfree.runs.run import Run

NAME = "report.html"
_ABOUT_CURVES = (
    "In validation, or in training for runs without validation. Values of the first third of a training may be cut off "
    "where they would press the curves together."
)


def report(
    runs: "str | Path | Run | Sequence[str | Path | Run]",
    out: str | Path | None = None,
    *,
    data_dir: str | Path | None = None,
    trust: bool = False,
) -> Path:
    """Write a report of runs as one self-contained HTML file, and draw the pictures of the runs anew.

    The report of a run that is not finished, or whose data or code cannot be read, shows what there is and says what is
    missing.

    Args:
        runs: a run, a run folder, a folder of run folders, or several of these.
        out: the HTML file. Default: report.html in the run folder; for several runs in the folder that holds them all,
            or in the current folder if there is none.
        data_dir: the folder of the data sets; default: BPFREE_DATA, else the user cache.
        trust: import the code that a run's config names as "module:Class". If False, the report of such a run does not
            show its predictions.

    Returns:
        The path of the file.

    Raises:
        UserError: a run does not exist, or the file cannot be written.

    Example:
        >>> report("runs/nowhere")
        Traceback (most recent call last):
        ...
        bpfree.errors.UserError: run: runs/nowhere does not exist
    """
    arguments = [runs] if isinstance(runs, str | Path | Run) else list(runs)
    sources = [run for each in arguments for run in ([each] if isinstance(each, Run) else _folders(each))]
    if not sources:
        raise UserError("runs: found none, allowed: at least one")
    path = _place(sources, out)  # before the work of reading: a file without a place is refused at once
    subjects = [_subject(source, data_dir, trust) for source in sources]
    _give_distinct_names(subjects)
    return html.write_page(path, _page_of_one(subjects[0]) if len(subjects) == 1 else _page_of_several(subjects))


def _folders(text: str | Path) -> list[Path]:
    """Return a run folder, or the run folders in a folder of runs."""
    path = user_path(text, "run")
    if not path.exists():
        raise UserError(f"run: {path} does not exist")
    # A run folder is one run, even if somebody has put other runs into it.
    inside = [] if (path / CONFIG).exists() else sorted(config.parent for config in path.glob(f"*/{CONFIG}"))
    return inside or [path]


def _place(sources: Sequence[Path | Run], out: str | Path | None) -> Path:
    """Return the path of the report.

    Args:
        sources: runs, and folders of runs.
        out: the file that the user named, or None.

    Raises:
        UserError: the user's name is not that of an HTML file, or the report has no folder.
    """
    if out is not None:
        # Only names of HTML files are allowed: `--out config.yaml` must not replace a file of the run.
        path = user_path(out, "out")
        if path.is_dir() or path.suffix.lower() not in (".html", ".htm"):
            raise UserError(f"out: found {path}, allowed: a file whose name ends in .html, such as {path / NAME}")
        return path
    folders = [source.folder if isinstance(source, Run) else source for source in sources]
    if len(folders) == 1:  # a run that was never saved has None
        if folders[0] is None:
            raise UserError("out: found none, and the run has no folder. Give a file, such as out='report.html'")
        return folders[0] / NAME
    shared = {folder.resolve().parent for folder in folders if folder is not None}
    same = len(shared) == 1 and None not in folders
    return (folders[0].parent if same and folders[0] else Path()) / NAME


def _subject(source: Path | Run, data_dir: str | Path | None, trust: bool) -> Subject:
    """Read and load all that a report needs from a run, and note what is missing."""
    if isinstance(source, Run) and source.folder is None:
        history, tracked = epochs(source.metrics), measurements(source.tracked)
        recorded = Recorded("run", None, source.config.plain(), history, tracked, source.result)
    else:
        folder = source.folder if isinstance(source, Run) else source
        assert folder is not None
        recorded = read_run(folder)
    missing: list[str] = []
    run = source if isinstance(source, Run) else _loaded(recorded, missing, trust)
    split, which = (None, "") if run is None else _samples(run, data_dir, missing)
    if run is not None and which == "test samples":
        run = run.with_test(split)
    pictures = {} if run is None else _draw(run, recorded, split, missing)
    return Subject(recorded, run, split, which, pictures, missing)


def _loaded(recorded: Recorded, missing: list[str], trust: bool) -> Run | None:
    """Load a run with its weights, or return None and say in `missing` why that is not possible.

    Args:
        recorded: the run, which has a folder.
        missing: gets a sentence if the run cannot be loaded.
        trust: import the code that the config of the run names.
    """
    assert recorded.folder is not None
    try:
        run = load(recorded.folder, trust=trust)
    except (UserError, OSError) as error:  # a folder of another version, damaged, or one that names code
        missing.append(f"The report shows no predictions, because the run cannot be loaded: {_line(error)}")
        return None
    # metrics.jsonl may go further than the checkpoint, and it was read so that damaged lines do not matter.
    return run.with_records(recorded.history, recorded.tracked)


def _samples(run: Run, data_dir: str | Path | None, missing: list[str]) -> tuple[Split | None, str]:
    """Return samples to predict and what they are: of the test split, else of validation, else of training.

    Args:
        run: the run.
        data_dir: the folder of the data sets; None for the default.
        missing: gets a sentence if samples, or test samples, are missing.

    Returns:
        The samples and a name for them, such as "test samples"; None and "" if the data cannot be read.
    """
    if run.test is not None:
        return run.test, "test samples"
    if "data" in run.from_python:
        missing.append(
            "The report shows no predictions, because the data of the run came from Python and are not stored. In "
            "Python, bpfree.report(run) shows predictions for a run that was trained with test=... in the same program."
        )
        return None, ""
    config = run.config
    try:
        dataset = config.data.load(data_dir)
        if dataset.test is not None:
            return dataset.test, "test samples"
        train, validation = dataset.carve(config.data.validation, config.train.seed)
    except (UserError, OSError, KeyError) as error:  # not downloaded, moved, or changed since the training
        missing.append(f"The report shows no predictions, because the data cannot be read: {_line(error)}")
        return None, ""
    which = "training" if validation is None else "validation"
    missing.append(f"The data set has no test split, so the report shows predictions for {which} samples.")
    return validation or train, f"{which} samples"


def _draw(run: Run, recorded: Recorded, split: Split | None, missing: list[str]) -> dict[Path, Figure | None]:
    """Draw the pictures of a run into its folder and return their paths and figures, or say in `missing` why not.

    Args:
        run: the run with its weights.
        recorded: the files of the run; without a folder nothing is drawn.
        split: samples to predict, or None.
        missing: gets a sentence if the pictures cannot be written.
    """
    if recorded.folder is None:
        return {}
    try:
        return draw_figures(run, recorded.folder / PLOTS, split)
    except UserError as error:
        missing.append(f"The pictures of the run could not be written: {_line(error)}")
        return {}


def _line(error: BaseException) -> str:
    """Return the text of an error on one line."""
    return " ".join(str(error).split())


def _give_distinct_names(subjects: Sequence[Subject]) -> None:
    """Rename runs whose folders have the same name: by their paths, or by numbers if the paths are the same too."""
    names = [subject.recorded.name for subject in subjects]
    for recorded in [subject.recorded for subject in subjects if names.count(subject.recorded.name) > 1]:
        recorded.name = str(recorded.folder or recorded.name)
    seen: dict[str, int] = {}
    for subject in subjects:
        name = subject.recorded.name
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            subject.recorded.name = f"{name} ({seen[name]})"


def _page_of_one(subject: Subject) -> str:
    """Return the report of one run."""
    recorded = subject.recorded
    return html.page(recorded.name, lead=lead_of(recorded), sections=sections_of(subject))


def _page_of_several(subjects: Sequence[Subject]) -> str:
    """Return the report of several runs: tables, curves in common panels, and each run folded away.

    Runs with different data or tasks have no numbers in common, so each such group has a table and panels of its own.
    """
    runs = [subject.recorded for subject in subjects]
    groups: dict[str, list[Recorded]] = {}
    for run in runs:
        groups.setdefault(_data_of(run), []).append(run)
    titles = {title: [html.heading(title)] if len(groups) > 1 else [] for title in groups}
    tables = [part for title, of in groups.items() for part in (*titles[title], _comparison(of))]
    drawn = {title: _overlaid(of) for title, of in groups.items()}
    curves = [part for title, parts in drawn.items() if parts for part in (*titles[title], *parts)]
    sections = [
        Section("Comparison", tables, "Each row is a single run. Small differences may be chance."),
        Section("Learning curves", curves, _ABOUT_CURVES),
        Section("Each run", [_folded(subject) for subject in subjects]),
    ]
    lead = ", ".join(dict.fromkeys(str(run.option("rule") or "?") for run in runs))
    return html.page(f"{len(runs)} runs", lead=lead, sections=[section for section in sections if section.parts])


def _data_of(run: Recorded) -> str:
    """Return the data and the task of a run as a title."""
    return ", ".join(str(run.option(section) or "?") for section in ("data", "task"))


def _folded(subject: Subject) -> Markup:
    """Return the whole report of one run as a part that the reader can open."""
    parts: list[Markup] = []
    for section in sections_of(subject):
        parts += [
            html.heading(section.title),
            *([html.paragraph(section.note)] if section.note else []),
            *section.parts,
        ]
    return html.details(f"{subject.recorded.name}: {lead_of(subject.recorded)}", parts)


def _overlaid(runs: Sequence[Recorded]) -> list[Markup]:
    """Return the learning curves of several runs, over the epochs and over the seconds."""
    histories = {run.name: run.history for run in runs if run.history}
    return [
        html.picture(figure, alt=f"{metric} of each run over {axis}")
        for over, axis in (("epoch", "epochs"), ("seconds", "seconds"))
        for metric, figure in overlaid_curves(histories, over=over).items()
    ]


def _comparison(runs: Sequence[Recorded]) -> Markup:
    """Return a table with one row for each run; the runs have the same data and task."""
    metrics = [*_metrics(runs, "test"), *_metrics(runs, "validation")[:1]]
    columns = [
        *(Column(title, numeric=False) for title in ("Run", "Rule", "Net")),
        Column("Parameters"),
        *(Column(name.replace("_", " ").capitalize(), split) for split, name in metrics),
        *(Column("Epochs"), Column("Wall time"), Column("CPU time"), Column("Memory", "of one step")),
    ]
    return html.table(columns, [_row(run, metrics) for run in runs])


def _metrics(runs: Sequence[Recorded], split: str) -> list[tuple[str, str]]:
    """Return the pairs (split, metric) for the metrics of the whole net that any run has; accuracy is before loss."""
    return [(split, name) for name in sorted({name for run in runs for name in run.metrics(split)}) if "/" not in name]


def _row(run: Recorded, metrics: Sequence[tuple[str, str]]) -> list[Cell | str]:
    """Return the row of a run; the costs of an unfinished run are those up to its last epoch."""
    result, last = run.result, run.history[-1] if run.history else {}
    wall, cpu = (
        result.get(f"{kind}_seconds", last.get(key)) for kind, key in (("wall", "seconds"), ("cpu", "cpu_seconds"))
    )
    memory, parameters = result.get("step_memory_bytes"), result.get("parameters")
    return [
        Cell(run.name, note="" if run.is_over else state_of(run)),
        *(str(run.option(section) or "\u2013") for section in ("rule", "net")),
        _cell(parameters, number),
        *(_cell(run.metrics(split).get(name), number) for split, name in metrics),
        str(len(run.history)),
        *(_cell(value, seconds) for value in (wall, cpu)),
        _cell(memory, megabytes),
    ]


def _cell(value: Any, as_text: Callable[[Any], str]) -> Cell:
    """Return a cell that is shown as text and sorted by its value."""
    return Cell(as_text(value), float(value) if is_number(value) else None)
