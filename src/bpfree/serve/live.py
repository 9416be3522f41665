"""The files of a run that may be trained at this moment, read anew whenever they change."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from bpfree.disk.plain import is_number
from bpfree.lab.report.records import Recorded, numbers, read_run
from bpfree.runs.folder import CONFIG, METRICS, RESULT
from bpfree.serve.found import Found
from bpfree.tasks.class_metrics import BY_CLASS
from bpfree.trackers import MEASURES

_POINTS = 400  # of a line, at most; more cannot be told apart on a screen
_SILENT = 120.0  # seconds; a run that wrote nothing for so long, and for many epochs, may be dead
_SILENT_EPOCHS = 10.0
_COSTS = ("wall_seconds", "cpu_seconds", "parameters", "queries", "energy_joules")

State = Literal["training", "finished", "stopped", "silent"]


class Line(BaseModel):
    """A line of a curve."""

    name: str
    x: list[float]
    y: list[float]


class Curve(BaseModel):
    """The lines of one quantity of a run."""

    title: str
    x: Literal["epoch", "step"]
    y: str
    lines: list[Line]


class Live(BaseModel):
    """A run as far as its files say at this moment."""

    id: str
    state: State
    why: str = Field(description="Why the run has stopped; empty if it has not.")
    about: dict[str, str] = Field(description="What the run is: rule, net, data, seed.")
    epoch: int
    epochs: int | None = Field(description="The epochs that the run shall have in all.")
    seconds: float = Field(description="Seconds of training so far.")
    seconds_left: float | None = Field(default=None, description="Seconds that are left, if all epochs take as long.")
    age: float = Field(description="Seconds since the run wrote something.")
    latest: dict[str, dict[str, float]] = Field(description="The latest metrics, by split.")
    cost: dict[str, float]
    curves: list[Curve]
    trackers: list[Curve]
    notes: list[str]


class Follower:
    """Read runs again when their files have changed.

    Attributes:
        reads: how often the files of a run were read.
    """

    def __init__(self) -> None:
        self.reads = 0
        self._kept: dict[Path, tuple[tuple[int, ...], Recorded]] = {}

    def __call__(self, found: Found) -> Live:
        """Return a run as it is now.

        Args:
            found: where the run is, and its name.

        Raises:
            UserError: the config of the run cannot be read.
        """
        mark = _mark(found.folder)
        kept = self._kept.get(found.folder)
        if kept is None or kept[0] != mark:
            self.reads += 1
            # The mark is older than what is read, so a change in between is seen the next time.
            kept = self._kept[found.folder] = (mark, read_run(found.folder))
        return live_of(found.id, kept[1], _age(found.folder))


def _mark(folder: Path) -> tuple[int, ...]:
    """Return numbers that change whenever a file of the run does."""
    stats = [_stat(folder / name) for name in (CONFIG, METRICS, RESULT)]
    return tuple(number for stat in stats for number in ((stat.st_mtime_ns, stat.st_size) if stat else (0, 0)))


def _age(folder: Path) -> float:
    """Return the seconds since the run wrote something."""
    times = [stat.st_mtime for name in (CONFIG, METRICS, RESULT) if (stat := _stat(folder / name))]
    return max(0.0, time.time() - max(times, default=time.time()))


def _stat(path: Path) -> Any:
    try:
        return path.stat()
    except OSError:
        return None


def live_of(name: str, run: Recorded, age: float) -> Live:
    """Return what a page shows of a run.

    Args:
        name: its name on the page.
        run: its files.
        age: seconds since it wrote something.
    """
    last: Mapping[str, Any] = run.history[-1] if run.history else {}
    epoch, seconds = int(last.get("epoch", 0)), _number(last.get("seconds"))
    whole = run.option("train", "epochs")
    epochs = int(whole) if is_number(whole) else None
    pace = _pace(run)
    state: State = "finished" if run.is_over else "stopped" if run.stopped else "training"
    if state == "training" and age > max(_SILENT, _SILENT_EPOCHS * pace):
        state = "silent"
    left = max(0.0, (epochs - epoch) * pace - age) if epochs is not None and pace and state == "training" else None
    cost = numbers(_cost_so_far(last) | {key: run.result[key] for key in _COSTS if key in run.result})
    return Live(
        id=name,
        state=state,
        why=run.stopped,
        about=_about(run),
        epoch=epoch,
        epochs=epochs,
        seconds=_number(run.result.get("wall_seconds")) or seconds,
        seconds_left=left,
        age=age,
        latest={split: _whole_net(run.metrics(split)) for split in ("train", "validation", "test")},
        cost=cost,
        curves=_curves(run),
        trackers=_tracker_curves(run),
        notes=run.notes,
    )


def _about(run: Recorded) -> dict[str, str]:
    """Return what a run is: the names of its rule, net and data, and its seed."""
    names = {part: str(run.option(part)) for part in ("rule", "net", "data")}
    return names | {"seed": str(run.option("train", "seed"))}


def _number(value: Any) -> float:
    return float(value) if is_number(value) else 0.0


def _pace(run: Recorded) -> float:
    """Return the seconds of an epoch: the mean of the last ones, since the first may be slower."""
    times = [_number(record.get("seconds")) for record in run.history[-6:]]
    if len(times) > 1:
        return max(0.0, (times[-1] - times[0]) / (len(times) - 1))
    return times[0] if times else 0.0


def _cost_so_far(last: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the record of the last epoch says about cost."""
    names = {"wall_seconds": "seconds", "cpu_seconds": "cpu_seconds", "samples_per_second": "samples_per_second"}
    return {name: last.get(key) for name, key in names.items()}


def _whole_net(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics of the whole net: "loss/fc1" is the loss of one layer."""
    return {name: value for name, value in metrics.items() if "/" not in name}


def _curves(run: Recorded) -> list[Curve]:
    """Return the curves of the metrics over the epochs, and of the losses of layers."""
    names = dict.fromkeys(n for record in run.history for split in ("validation", "train") for n in record[split])
    curves = []
    for metric in [name for name in names if "/" not in name and name not in BY_CLASS]:
        lines = [_line(run.history, "epoch", split, metric, split) for split in ("validation", "train")]
        curves.append(Curve(title=metric, x="epoch", y=metric, lines=[line for line in lines if line.x]))
    layers = [name for name in names if name.startswith("loss/")]
    if layers:
        lines = [_line(run.history, "epoch", "train", name, name.partition("/")[2]) for name in layers]
        curves.append(Curve(title="loss of each layer", x="epoch", y="loss", lines=[line for line in lines if line.x]))
    return curves


def _tracker_curves(run: Recorded) -> list[Curve]:
    """Return a curve for each tracker with a line for each layer; quantities of different units have their own."""
    by_tracker: dict[str, list[Mapping[str, Any]]] = {}
    for record in run.tracked:
        by_tracker.setdefault(record["tracker"], []).append(record)
    curves = []
    for tracker, records in by_tracker.items():
        layers = list(dict.fromkeys(layer for record in records for layer in record["values"]))
        kind = MEASURES.get(tracker)  # None for a tracker of the user, or of another version
        groups = [[layer] for layer in layers] if tracker == "cost" else [layers] if layers else []
        for group in groups:
            unit = group[0] if tracker == "cost" else (kind and kind.unit) or tracker
            title = f"{tracker}: {unit}" if unit != tracker else tracker
            lines = [_line(records, "step", "values", layer, layer) for layer in group]
            curves.append(Curve(title=title, x="step", y=unit, lines=[line for line in lines if line.x]))
    return curves


def _line(records: Sequence[Mapping[str, Any]], x: str, part: str, key: str, name: str) -> Line:
    """Return the points of the records that have a value, evenly thinned to a number that a screen can show."""
    points = [(record[x], record[part][key]) for record in records if key in record[part] and is_number(record.get(x))]
    every = -(-len(points) // _POINTS)
    kept = points[:: max(every, 1)]
    if points and kept[-1] != points[-1]:
        kept.append(points[-1])
    return Line(name=name, x=[float(p[0]) for p in kept], y=[float(p[1]) for p in kept])
