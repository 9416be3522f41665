"""The files benchmarks/results/<name>.json: the results of an entry's runs, and the config they were trained with."""

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
_FREE = (("data", "dir"), ("train", "device"), ("train", "seed"))  # options that may differ from run to run


class _Strict(BaseModel):
    """A model whose objects cannot be changed, and which refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Machine(_Strict):
    """The machine that trained a run.

    Attributes:
        processor: the name of the processor.
        cores: the number of cores that the process was allowed to use.
        system: operating system and architecture, such as "Linux x86_64".
    """

    processor: str
    cores: int
    system: str

    def __str__(self) -> str:
        return f"{self.processor}, {self.cores} core{'s' * (self.cores > 1)}"


class Measured(_Strict):
    """The result of one run.

    Attributes:
        seed: the seed of the run.
        score: the entry's metric on the test split; accuracy is in %.
        cpu_seconds: CPU time of training and validation.
        wall_seconds: the same as wall time.
        step_memory_bytes: peak memory of one training step beyond parameters and optimizer state; None if unknown.
        parameters: the number of parameters of the net.
        rule_parameters: the number of parameters of the rule, such as heads.
        net_flops: floating-point operations of the net in a training step, for a sample; None if not counted.
        head_flops: those that the heads of the rule add; None if there are none, or if they were not counted.
        epochs: the number of epochs that were trained.
        precision: "float32" or "bfloat16".
        threads: the number of threads.
        date: the day on which the run ended.
        machine: the machine that trained it.
        versions: versions of bpfree, torch, numpy and Python.
    """

    seed: int
    score: float
    cpu_seconds: float
    wall_seconds: float
    step_memory_bytes: int | None
    parameters: int
    rule_parameters: int
    net_flops: float | None = None
    head_flops: float | None = None
    epochs: int
    precision: str
    threads: int
    date: date
    machine: Machine
    versions: dict[str, str]


class Results(_Strict):
    """The content of a results file.

    Attributes:
        command: the command that trains the run of the first seed.
        config: the config of all runs, without seed, data folder, device and trackers.
        runs: the results, in the order of their seeds.
    """

    command: str
    config: dict[str, Any]
    runs: list[Measured]


def this_machine() -> Machine:
    """Return the machine that runs this program."""
    return Machine(processor=processor(), cores=cores(), system=f"{platform.system()} {platform.machine()}")


def read_results(entry: Entry, folder_: Path) -> Results | None:
    """Return the content of an entry's results file, or None if the file does not exist.

    Args:
        entry: the entry.
        folder_: the folder of the results files.

    Raises:
        UserError: the file is damaged.
    """
    path = folder_ / f"{entry.name}.json"
    try:
        return Results.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (UnicodeDecodeError, ValidationError) as error:
        reason = explain(error) if isinstance(error, ValidationError) else str(error)
        raise UserError(
            f"{path}: damaged: {reason}. Delete it, and train again with `bpfree ledger --run {entry.name}`"
        ) from error


def write_results(entry: Entry, runs: Sequence[Measured], folder_: Path) -> Path:
    """Write the results file of an entry; an older file is replaced.

    Args:
        entry: the entry, whose config the runs were trained with.
        runs: all its results, in any order.
        folder_: the folder of the results files, which is made if it is missing.

    Returns:
        The path of the file.
    """
    in_order = sorted(runs, key=lambda run: run.seed)
    results = Results(command=entry.command, config=essence(entry.training(entry.seeds[0])), runs=in_order)
    folder_.mkdir(parents=True, exist_ok=True)
    path = folder_ / f"{entry.name}.json"
    write_text(path, json.dumps(results.model_dump(mode="json"), indent=1) + "\n")
    return path


def measure(entry: Entry, seed: int, run: Path) -> Measured:
    """Return the result of a finished run.

    Args:
        entry: the entry that the run belongs to.
        seed: the seed of the run.
        run: the run folder.

    Raises:
        UserError: the data have no test split, or the task does not have the entry's metric.
    """
    result = folder.read_result(run)
    assert result is not None
    if entry.metric not in (result["test"] or {}):
        raise UserError(f"{run}: metric: found no {entry.metric} of a test split, allowed: data with a test split")
    # result.json has no date; the file was written when the training ended.
    written = datetime.fromtimestamp((run / folder.RESULT).stat().st_mtime).date()
    # The fields of a result that have the same name here; seed and versions are given below.
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
    """Return the options of a config that decide the score, except the seed.

    Data folder and device are left out, because results from another machine count too, and trackers, because they
    only watch.

    Args:
        config: a complete config.
    """
    # Whole configs are compared, and not the options of the entry: a changed default changes the score, too.
    values = config.plain()
    for section, key in _FREE:
        del values[section][key]
    del values["trackers"]
    return values


def is_of_today(entry: Entry, results: Results) -> bool:
    """Return True if results were measured with the config that the entry has now.

    Args:
        entry: the entry.
        results: the content of its results file.
    """
    try:
        with warnings.catch_warnings():  # results may be older than the new place of a key, and nobody can change them
            warnings.simplefilter("ignore", DeprecationWarning)
            then = essence(parse(results.config))  # options that are newer than the file get their defaults
    except UserError:  # a name or an option that no longer exists
        return False
    now = essence(entry.training(entry.seeds[0]))
    # "auto" became a precision when the run was trained, and which one depends on the machine.
    if now["train"]["precision"] == "auto":
        now["train"]["precision"] = then["train"]["precision"]
    return then == now
