"""A report: one or several runs as one HTML file, and their pictures as PNGs in the run folders."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup


from bpfree.data import Split
from bpfree.disk.paths import user_path
from bpfree.errors import UserError
from bpfree.lab.report import html
from bpfree.lab.report.charts import overlaid_curves
from bpfree.lab.report.format import megabytes, number, seconds
from bpfree.lab.report.html import Cell, Column, Section
from bpfree.lab.report.records import Recorded, epochs, is_number, measurements, read_run
from bpfree.lab.report.sections import Subject, lead_of, sections_of, state_of
from bpfree.pictures.draw import draw
from bpfree.runs.folder import CONFIG, PLOTS
from bpfree.runs.load import load
from bpfree.runs.run import Run

NAME = "report.html"


def report(
    runs: "str | Path | Run | Sequence[str | Path | Run]",
    out: str | Path | None = None,
    *,
    data_dir: str | Path | None = None,
    trust: bool = False,
) -> Path:
    """Write what came of runs as one HTML file that needs nothing else, and draw their pictures anew.

    A run that is not over, or whose data or code are not at hand, is told as far as it goes, with what is missing.

    Args:
        runs: a run, its folder, a folder of such folders, or several of these.
        out: the file; default: report.html in the run's folder; of several runs in the folder that they share, else in
            the current one.
        data_dir: where data sets are.
        trust: import what a run's config names as "module:Class"; without, such a run is told without its answers.

    Returns:
        The path of the file.

    Raises:
        UserError: there is no such run, or the file has no place.

    Example:
        >>> report("runs/nowhere")
        Traceback (most recent call last):
        ...
        bpfree.errors.UserError: run: runs/nowhere does not exist
    """
    given = [runs] if isinstance(runs, str | Path | Run) else list(runs)
    found = [run for one in given for run in ([one] if isinstance(one, Run) else _folders(user_path(one, "run")))]
    if not found:
        raise UserError("runs: found none, allowed: at least one")
    path = _place(found, out)
    subjects = [_subject(run, data_dir, trust) for run in found]
    _name_apart(subjects)
    return html.write_page(path, _one(subjects[0]) if len(subjects) == 1 else _several(subjects))


def _folders(path: Path) -> list[Path]:
    """A run folder, or those in a folder of runs."""
    if not path.exists():
        raise UserError(f"run: {path} does not exist")
    inside = [] if (path / CONFIG).exists() else sorted(config.parent for config in path.glob(f"*/{CONFIG}"))
    return inside or [path]


def _place(found: Sequence[Path | Run], out: str | Path | None) -> Path:
    if out is not None:
        path = user_path(out, "out")
        if path.is_dir() or path.suffix.lower() not in (".html", ".htm"):
            raise UserError(f"out: found {path}, allowed: a file whose name ends in .html, such as {path / NAME}")
        return path
    folders = [run.folder if isinstance(run, Run) else run for run in found]
    if len(folders) == 1:
        if folders[0] is None:
            raise UserError("out: none was given, and the run has no folder. Give a file such as report.html")
        return folders[0] / NAME
    shared = {folder.resolve().parent for folder in folders if folder is not None}
    same = len(shared) == 1 and None not in folders
    return (folders[0].parent if same and folders[0] else Path()) / NAME


def _subject(given: Path | Run, data_dir: str | Path | None, trust: bool) -> Subject:
    """All that is at hand of a run, and what is not."""
    if isinstance(given, Run) and given.folder is None:
        history, tracked = epochs(given.metrics), measurements(given.tracked)
        recorded = Recorded("run", None, given.config.plain(), history, tracked, given.result)
    else:
        folder = given.folder if isinstance(given, Run) else given
        assert folder is not None
        recorded = read_run(folder)
    missing: list[str] = []
    run = given if isinstance(given, Run) else _loaded(recorded, missing, trust)
    split, which = (None, "") if run is None else _samples(run, data_dir, missing)
    pictures = [] if run is None else _draw(run, recorded, split, missing)
    return Subject(recorded, run, split, which, pictures, missing)


def _loaded(recorded: Recorded, missing: list[str], trust: bool) -> Run | None:
    """The run with its weights and the records of its folder, which may be more than the checkpoint's."""
    assert recorded.folder is not None
    try:
        run = load(recorded.folder, trust=trust)
    except (UserError, OSError) as error:  # a folder of another version, damaged, or one that names code
        missing.append(f"Nothing is shown of its answers, since the run cannot be loaded: {_line(error)}")
        return None
    run.trainer.progress.history, run.trainer.progress.tracked = recorded.history, recorded.tracked
    return run


def _samples(run: Run, data_dir: str | Path | None, missing: list[str]) -> tuple[Split | None, str]:
    """Samples to look at: of the test split, else of validation, else of training."""
    if run.test is not None:
        return run.test, "test samples"
    if "data" in run.given:
        missing.append(
            "Nothing is shown of its answers, since its data came from Python and are not at hand. In Python, "
            "bpfree.report(run) shows them for a run that was just trained with test data."
        )
        return None, ""
    config = run.config
    try:
        dataset = config.data.load(data_dir)
        if dataset.test is not None:
            run.test = dataset.test
            return dataset.test, "test samples"
        train, validation = dataset.carve(config.data.validation, config.train.seed)
    except (UserError, OSError, KeyError) as error:
        missing.append(f"Nothing is shown of its answers, since its data are not at hand: {_line(error)}")
        return None, ""
    missing.append("The data set has no test split, so answers are those to samples of validation or training.")
    return validation or train, "samples"


def _draw(run: Run, recorded: Recorded, split: Split | None, missing: list[str]) -> list[Path]:
    if recorded.folder is None:
        return []
    try:
        return draw(run, recorded.folder / PLOTS, split)
    except UserError as error:
        missing.append(f"Its pictures could not be written: {_line(error)}")
        return []


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _name_apart(subjects: Sequence[Subject]) -> None:
    """Runs whose folders have one name are told apart by their paths, else by numbers."""
    names = [subject.recorded.name for subject in subjects]
    for recorded in [subject.recorded for subject in subjects if names.count(subject.recorded.name) > 1]:
        recorded.name = str(recorded.folder or recorded.name)
    seen: dict[str, int] = {}
    for subject in subjects:
        name = subject.recorded.name
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            subject.recorded.name = f"{name} ({seen[name]})"


def _one(subject: Subject) -> str:
    recorded = subject.recorded
    return html.page(recorded.name, lead=lead_of(recorded), sections=sections_of(subject))


def _several(subjects: Sequence[Subject]) -> str:
    runs = [subject.recorded for subject in subjects]
    each = [_folded(subject) for subject in subjects]
    sections = [
        Section("Side by side", [_side_by_side(runs)], "One run each: small differences are noise."),
        Section("Learning curves", _overlaid(runs), "In validation, where a run has it."),
        Section("Each run", each),
    ]
    lead = ", ".join(dict.fromkeys(str(run.option("rule") or "?") for run in runs))
    return html.page(f"{len(runs)} runs", lead=lead, sections=[section for section in sections if section.parts])


def _folded(subject: Subject) -> Markup:
    parts: list[Markup] = []
    for section in sections_of(subject):
        parts += [
            html.heading(section.title),
            *([html.paragraph(section.note)] if section.note else []),
            *section.parts,
        ]
    return html.details(f"{subject.recorded.name}: {lead_of(subject.recorded)}", parts)


def _overlaid(runs: Sequence[Recorded]) -> list[Markup]:
    histories = {run.name: run.history for run in runs if run.history}
    return [
        html.picture(figure, alt=f"{metric} of each run over {over}s".replace("secondss", "seconds"))
        for over in ("epoch", "seconds")
        for metric, figure in overlaid_curves(histories, over=over).items()
    ]


def _side_by_side(runs: Sequence[Recorded]) -> Markup:
    metrics = [*_known(runs, "test"), *_known(runs, "validation")[:1]]
    columns = [
        *(Column(title, numeric=False) for title in ("Run", "Rule", "Net", "Data")),
        *(Column(name.capitalize(), split) for split, name in metrics),
        *(Column("Epochs"), Column("Wall time"), Column("CPU time"), Column("Memory", "of a step")),
        Column("Parameters"),
    ]
    return html.table(columns, [_row(run, metrics) for run in runs])


def _known(runs: Sequence[Recorded], split: str) -> list[tuple[str, str]]:
    """Metrics of the whole net that any run has, what counts first."""
    return [(split, name) for name in sorted({name for run in runs for name in run.metrics(split)}) if "/" not in name]


def _row(run: Recorded, metrics: Sequence[tuple[str, str]]) -> list[Cell | str]:
    result, last = run.result, run.history[-1] if run.history else {}
    wall, cpu = (
        result.get(f"{kind}_seconds", last.get(key)) for kind, key in (("wall", "seconds"), ("cpu", "cpu_seconds"))
    )
    memory, parameters = result.get("step_memory_bytes"), result.get("parameters")
    return [
        Cell(run.name, note="" if run.is_over else state_of(run)),
        *(str(run.option(section) or "\u2013") for section in ("rule", "net", "data")),
        *(_cell(run.metrics(split).get(name), number) for split, name in metrics),
        str(len(run.history)),
        *(_cell(value, seconds) for value in (wall, cpu)),
        _cell(memory, megabytes),
        _cell(parameters, number),
    ]


def _cell(value: Any, shown: Callable[[Any], str]) -> Cell:
    return Cell(shown(value), float(value) if is_number(value) else None)
