"""benchmarks/results/<name>.json: what the runs of an entry came to, and with which config."""

import json
import platform
import warnings
from collections.abc import Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from bpfree.disk.atomic import write_text
from bpfree.errors import UserError
from bpfree.lab.jobs.machine import cores, processor
from bpfree.lab.ledger.entries import Entry, explain
from bpfree.runs import folder
from bpfree.runs.config import Config, parse

RESULTS = Path("benchmarks") / "results"
_VERSIONS = ("bpfree", "torch", "numpy", "python")
_ELSEWHERE = (("data", "dir"), ("train", "device"), ("train", "seed"))  # may differ from run to run


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Machine(_Strict):
    """Where a run was trained."""

    processor: str
    cores: int
    system: str

    def __str__(self) -> str:
        return f"{self.processor}, {self.cores} core{'s' * (self.cores > 1)}"


class Measured(_Strict):
    """What one run came to. A score is that of the test split; accuracy is in %."""

    seed: int
    score: float
    cpu_seconds: float
    wall_seconds: float
    step_memory_bytes: int | None
    parameters: int
    rule_parameters: int
    epochs: int
    precision: str
    threads: int
    date: date
    machine: Machine
    versions: dict[str, str]


class Results(_Strict):
    """A results file.

    Attributes:
        command: that trained the first of the runs.
        config: of all runs, without seed and place.
        runs: by seed.
    """

    command: str
    config: dict[str, Any]
    runs: list[Measured]


def this_machine() -> Machine:
    """The one that runs this."""
    return Machine(processor=processor(), cores=cores(), system=f"{platform.system()} {platform.machine()}")


def read_results(entry: Entry, folder_: Path) -> Results | None:
    """The results file of an entry, or None if there is none.

    Raises:
        UserError: it is damaged.
    """
    path = folder_ / f"{entry.name}.json"
    try:
        return Results.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (UnicodeDecodeError, ValidationError) as error:
        reason = explain(error) if isinstance(error, ValidationError) else str(error)
        raise UserError(f"{path}: damaged: {reason}. Delete it, and `bpfree ledger --run {entry.name}`") from error


def write_results(entry: Entry, runs: Sequence[Measured], folder_: Path) -> Path:
    """Write the results file of an entry anew."""
    in_order = sorted(runs, key=lambda run: run.seed)
    results = Results(command=entry.command, config=essence(entry.training(entry.seeds[0])), runs=in_order)
    folder_.mkdir(parents=True, exist_ok=True)
    path = folder_ / f"{entry.name}.json"
    write_text(path, json.dumps(results.model_dump(mode="json"), indent=1) + "\n")
    return path


def measure(entry: Entry, seed: int, run: Path) -> Measured:
    """What a finished run folder holds.

    Raises:
        UserError: the run has no test split, or no such metric on it.
    """
    result = folder.read_result(run)
    assert result is not None
    if entry.metric not in (result["test"] or {}):
        raise UserError(f"{run}: metric: found no {entry.metric} of a test split, allowed: data that have one")
    written = datetime.fromtimestamp((run / folder.RESULT).stat().st_mtime).date()
    kept = Measured.model_fields.keys() & result.keys() - {"seed", "versions"}
    return Measured(
        seed=seed,
        score=result["test"][entry.metric] * (100 if entry.metric == "accuracy" else 1),
        date=written,
        machine=this_machine(),
        versions={name: result["versions"][name] for name in _VERSIONS},
        **{key: result[key] for key in kept},
    )


def essence(config: Config) -> dict[str, Any]:
    """What of a config decides the score, but for the seed."""
    values = config.plain()
    for section, key in _ELSEWHERE:
        del values[section][key]
    del values["trackers"]
    return values


def is_of_today(entry: Entry, results: Results) -> bool:
    """Whether they were measured with the entry's config as it is now; keys that are new since have their defaults.

    A config that says `precision: auto` is the same as one that named a precision, which depends on the machine.
    """
    try:
        with warnings.catch_warnings():  # results may be older than the place of a key; nobody can change them
            warnings.simplefilter("ignore", DeprecationWarning)
            then = essence(parse(results.config))
    except UserError:  # a name or key that is no longer there
        return False
    now = essence(entry.training(entry.seeds[0]))
    if now["train"]["precision"] == "auto":
        now["train"]["precision"] = then["train"]["precision"]
    return then == now
