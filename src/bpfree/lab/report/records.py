"""What a run folder tells, read so that a damaged or an older one still tells the rest."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bpfree.disk.paths import open_regular
from bpfree.disk.plain import LARGEST_JSON, parse_json
from bpfree.errors import UserError
from bpfree.runs import folder as layout
from bpfree.tasks.class_metrics import BY_CLASS
from bpfree.trackers import Record


@dataclass
class Recorded:
    """A run as plain values; whatever is not there is empty.

    Args:
        name: to tell it from others.
        folder: where it is, or None.
        config: sections, as in config.yaml.
        history: records of epochs; each has `epoch`, `step`, `train` and `validation`.
        tracked: records of trackers; each has `tracker`, `step` and `values`.
        result: as in result.json.
        stopped: why it ended early, as far as it knew.
        notes: what could not be read, in words.
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
        """Whether it came to a result."""
        return bool(self.result)

    def option(self, section: str, key: str = "name") -> Any:
        """Of the config; None if it is not there."""
        values = self.config.get(section)
        if isinstance(values, dict):
            return values.get(key)
        return values if key == "name" else None

    def metrics(self, split: str) -> dict[str, float]:
        """Of "test", "validation" or "train", at the end or as far as the run came; BY_CLASS only of skewed data."""
        found = numbers(self.result.get(split))
        found = found or (numbers(self.history[-1].get(split)) if self.history and split != "test" else {})
        left_out = () if self.option("data", "skew") else BY_CLASS
        return {name: value for name, value in found.items() if name not in left_out}


def read_run(path: Path) -> Recorded:
    """A run from its folder.

    Raises:
        UserError: it is no run folder.
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
    """Records, and how many lines are none."""
    try:
        with open_regular(path) as file:
            lines = file.read(LARGEST_JSON).decode("utf-8", errors="replace").splitlines()
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
    """Those of epochs, with `train` and `validation` always there."""
    own = [r for r in records if isinstance(r, dict) and is_number(r.get("epoch"))]
    return [{"step": r["epoch"], **r, **{s: numbers(r.get(s)) for s in ("train", "validation")}} for r in own]


def measurements(records: list[Any]) -> list[Record]:
    """Those of trackers."""
    own = [r for r in records if isinstance(r, dict) and is_number(r.get("step")) and isinstance(r.get("tracker"), str)]
    return [{**r, "values": numbers(r.get("values"))} for r in own]


def numbers(values: Any) -> dict[str, float]:
    """Of a mapping, what is a finite number."""
    return {k: v for k, v in mapping(values).items() if is_number(v)}


def mapping(values: Any) -> dict[str, Any]:
    """Itself, if it is one; else an empty one."""
    return {str(k): v for k, v in values.items()} if isinstance(values, dict) else {}


def is_number(value: Any) -> bool:
    """Whether it is a finite one."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
