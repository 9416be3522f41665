"""A run folder as plain values. A damaged or older folder still gives the parts that can be read."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bpfree.disk.paths import open_regular
from bpfree.disk.plain import LARGEST_JSON, is_number, parse_json
from bpfree.errors import UserError
from bpfree.runs import folder as layout
from bpfree.tasks.class_metrics import BY_CLASS
from bpfree.trackers import Record


@dataclass
class Recorded:
    """The files of one run as plain values; a part that is missing is empty.

    Attributes:
        name: the name of the run in the report.
        folder: the run folder, or None for a run that was never written.
        config: the sections of config.yaml.
        history: one record for each epoch, with the keys `epoch`, `step`, `train` and `validation`.
        tracked: one record for each measurement of a tracker, with the keys `tracker`, `step` and `values`.
        result: the values of result.json; empty while the run is not over.
        stopped: why the run ended early; empty if it did not, or was killed.
        notes: sentences that say which parts could not be read.
    """

    name: str
    folder: Path | None
    config: dict[str, Any]
    history: list[Record] = field(default_factory=list)
    tracked: list[Record] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)
    stopped: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        """True if the run has a result."""
        return bool(self.result)

    def option(self, section: str, key: str = "name") -> Any:
        """Return one option of the config, or None if the config does not have it.

        Args:
            section: a section, such as "rule". It may be a bare name in place of options.
            key: an option of the section; default: the name of what the section chooses.
        """
        values = self.config.get(section)
        if isinstance(values, dict):
            return values.get(key)
        return values if key == "name" else None

    def metrics(self, split: str) -> dict[str, float]:
        """Return the metrics of a split at the end, or of the last epoch if the run is not over.

        Balanced accuracy and macro F1 are left out, unless the training data are skewed: for classes of equal size
        they say nearly the same as accuracy.

        Args:
            split: "test", "validation" or "train"; "test" has none before the run is over.
        """
        metrics = numbers(self.result.get(split))
        if not metrics and self.history and split != "test":
            metrics = numbers(self.history[-1].get(split))
        left_out = () if self.option("data", "skew") else BY_CLASS
        return {name: value for name, value in metrics.items() if name not in left_out}


def read_run(path: Path) -> Recorded:
    """Return the run in a folder.

    Only a folder without a readable config is refused. Other damaged files are named in `notes`.

    Args:
        path: the run folder.

    Raises:
        UserError: the folder is not a run folder.
    """
    run = Recorded(path.resolve().name, path, layout.read_config(path))
    try:
        run.result = layout.read_result(path) or {}
    except UserError as error:
        run.notes.append(str(error))
    records, damaged = _read_lines(path / layout.METRICS)
    if damaged:
        run.notes.append(f"{layout.METRICS}: {damaged} damaged lines are left out")
    run.history, run.tracked = epochs(records), measurements(records)
    run.stopped = next((str(r["why"]) for r in records if isinstance(r, dict) and "why" in r), "")
    return run


def _read_lines(path: Path) -> tuple[list[Any], int]:
    """Return the records of a file with one JSON value on each line, and the number of damaged lines."""
    try:
        with open_regular(path) as file:
            lines = file.read(LARGEST_JSON).decode("utf-8", errors="replace").splitlines()  # a folder may be anybody's
    except OSError:
        return [], 0
    records, damaged = [], 0
    for line in filter(str.strip, lines):
        try:
            records.append(parse_json(line, str(path)))
        except UserError:
            damaged += 1
    return records, damaged


def epochs(records: list[Any]) -> list[Record]:
    """Return the records of epochs; each has `step`, `train` and `validation`, which may be empty.

    Args:
        records: lines of metrics.jsonl, of any type.
    """
    of_epochs = [r for r in records if isinstance(r, dict) and is_number(r.get("epoch"))]
    return [{"step": r["epoch"], **r, **{s: numbers(r.get(s)) for s in ("train", "validation")}} for r in of_epochs]


def measurements(records: list[Any]) -> list[Record]:
    """Return the records of trackers; the `values` of each are finite numbers by layer.

    Args:
        records: lines of metrics.jsonl, of any type.
    """
    of_trackers = [
        r for r in records if isinstance(r, dict) and is_number(r.get("step")) and isinstance(r.get("tracker"), str)
    ]
    return [{**r, "values": numbers(r.get("values"))} for r in of_trackers]


def numbers(values: Any) -> dict[str, float]:
    """Return the entries of a mapping whose values are finite numbers; an empty dict if it is not a mapping."""
    return {k: v for k, v in mapping(values).items() if is_number(v)}


def mapping(values: Any) -> dict[str, Any]:
    """Return a dict with its keys as text, and an empty dict in place of anything else."""
    return {str(k): v for k, v in values.items()} if isinstance(values, dict) else {}
