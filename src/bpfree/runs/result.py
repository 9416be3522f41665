"""What goes into result.json."""

import platform
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bpfree._version import __version__
from bpfree.data import Dataset, Split
from bpfree.grad import trainable
from bpfree.spec import split_spec
from bpfree.training.evaluation import Evaluation, class_summary

if TYPE_CHECKING:
    from bpfree.runs.run import Run


def summarize(this: "Run", dataset: Dataset, train: Split, test: Evaluation | None) -> dict[str, Any]:
    """What a run comes to, in plain values.

    Args:
        this: the run, with its training over.
        dataset: that it read.
        train: the split that it was trained on.
        test: how it did on the test split, if there is one.
    """
    trainer, progress = this.trainer, this.trainer.progress
    last = progress.history[-1] if progress.history else {}
    return {
        "test": test and test.metrics,
        "validation": last.get("validation"),
        "train": last.get("train"),
        **class_summary(this.task, train.y, test),
        "weights": this.weights,
        "rule": _name(this, "rule"),
        **trainer.rule.metadata(),
        "net": _name(this, "net"),
        "dataset": dataset.name,
        "seed": this.config.train.seed,
        "epochs": len(progress.history),
        "best_epoch": progress.best_epoch,
        "parameters": sum(p.numel() for p in trainable(trainer.net)),
        "rule_parameters": sum(p.numel() for p in trainable(trainer.rule)),
        "wall_seconds": progress.wall_seconds,
        "cpu_seconds": progress.cpu_seconds,
        "tracker_seconds": sum(cost["seconds"] for cost in progress.tracker_cost.values()),
        "trackers": progress.tracker_cost,
        "device": str(trainer.device),
        "precision": trainer.precision,
        "threads": torch.get_num_threads(),
        "versions": {
            "bpfree": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
        },
    }


def _name(this: "Run", section: str) -> str:
    module = this.trainer.net if section == "net" else this.trainer.rule
    return type(module).__name__ if section in this.given else split_spec(getattr(this.config, section), section)[0]
