"""Sum up a finished training in plain values, for result.json."""

import platform
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bpfree._version import __version__
from bpfree.grad import trainable
from bpfree.runs.run import Run
from bpfree.spec import split_spec
from bpfree.training.evaluation import Evaluation, class_summary


def summarize(run: Run, dataset: str, labels: Tensor, test: Evaluation | None) -> dict[str, Any]:
    """Return what a training came to, in plain values.

    Args:
        run: its training is over; its `result` is not read.
        dataset: name of the data set.
        labels: of the training samples, [N, ...].
        test: metrics on the test split; None if there is none.

    Returns:
        Metrics, names, counts, times in seconds and versions, as result.json holds them.
    """
    trainer, progress = run.trainer, run.progress
    last = progress.history[-1] if progress.history else {}
    return {
        "test": test and test.metrics,
        "validation": last.get("validation"),
        "train": last.get("train"),
        **class_summary(run.task, labels, test),
        "weights": run.weights,
        "rule": _name(run, "rule"),
        **trainer.rule.metadata(),
        "net": _name(run, "net"),
        "dataset": dataset,
        "seed": run.config.train.seed,
        "epochs": len(progress.history),
        "best_epoch": progress.best_epoch,
        "stopped": progress.why_stopped or None,
        "parameters": sum(p.numel() for p in trainable(trainer.net)),
        "rule_parameters": sum(p.numel() for p in trainable(trainer.rule)),
        # Shares of a pass, such as 1/10 of a block, add up with rounding errors.
        "queries": round(progress.queries, 6),
        "wall_seconds": progress.wall_seconds,
        "cpu_seconds": progress.cpu_seconds,  # the sum over all processes; memory and energy are those of the first one
        "processes": 1 if trainer.mesh.world is None else trainer.mesh.world.size,
        "mesh": trainer.mesh.mode,
        # Of the whole GPU ("nvml") or of the whole processor ("rapl"), whoever used it; see `bpfree.training.energy`.
        "energy_joules": progress.energy_joules,
        "energy_source": progress.energy_source,
        "tracker_seconds": sum(cost["seconds"] for cost in progress.tracker_cost.values()),
        "trackers": progress.tracker_cost,
        "device": str(trainer.device),
        "precision": trainer.precision,
        "graph": trainer.uses_graph,
        "deterministic": trainer.deterministic,
        # Another number of threads adds up floats in another order, which changes the last bits of a result.
        "threads": torch.get_num_threads(),
        "versions": {
            "bpfree": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
        },
    }


def _name(run: Run, section: str) -> str:
    """Return the name of the net or the rule: the config's, or the class of an object that came from Python."""
    module = run.trainer.net if section == "net" else run.trainer.rule
    return type(module).__name__ if section in run.from_python else split_spec(getattr(run.config, section), section)[0]
