"""Trackers: objects that follow a training. They do not change its result, unless they stop it or change its options.

A config names the entries of `TRACKERS`: measures, which record values of the net, and loggers, which send all records
to another program. For a measure of your own, derive a class from `Measure`, with a name and the method `measure`; for
anything else, derive one from `Tracker`, or give functions to `Callback`. See docs/callbacks.md.
"""

from collections.abc import Sequence
from typing import Any

from bpfree.errors import UserError
from bpfree.spec import Spec, build
from bpfree.trackers.alignment import BPCosine, WeightAlignment
from bpfree.trackers.base import OTHER_NAMES, Measure, Record, Tracker
from bpfree.trackers.callback import Callback
from bpfree.trackers.cost import Cost
from bpfree.trackers.depth import SegmentAccuracy
from bpfree.trackers.logger import Logger
from bpfree.trackers.mlflow import MLflow
from bpfree.trackers.norms import Gradients, LocalLoss, Weights
from bpfree.trackers.tensorboard import TensorBoard
from bpfree.trackers.wandb import WandB

MEASURES: dict[str, type[Measure]] = {
    "bp_cosine": BPCosine,
    "weight_alignment": WeightAlignment,
    "gradients": Gradients,
    "weights": Weights,
    "local_loss": LocalLoss,
    "segment_accuracy": SegmentAccuracy,
    "cost": Cost,
}
"""Every measure by its name."""
LOGGERS: dict[str, type[Logger]] = {"mlflow": MLflow, "wandb": WandB, "tensorboard": TensorBoard}
"""Every logger by its name."""
TRACKERS: dict[str, type[Tracker]] = {**MEASURES, **LOGGERS}
"""Every tracker by its name. `bpfree list trackers` shows them."""


def refuse_others(listed: Sequence[Any]) -> None:
    """Raise UserError for what is not a tracker, such as a callback of Keras or Lightning.

    Args:
        listed: what a user gave as trackers.

    Raises:
        UserError: an element is neither a name, nor a spec, nor a tracker.
    """
    if isinstance(listed, str):
        raise UserError(f"trackers: found {listed!r}, allowed: a list, [{listed!r}]")
    for each in listed:
        if isinstance(each, type) and issubclass(each, Tracker):
            raise UserError(f"trackers: found the class {each.__name__}, allowed: an object, {each.__name__}(...)")
        if isinstance(each, Tracker) or hasattr(each, "keys") or isinstance(each, str):
            continue
        calls = sorted({f"{other} is {name}" for other, name in OTHER_NAMES.items() if hasattr(each, other)})
        rest = f" ({', '.join(calls)})" if calls and not isinstance(each, type) else ""
        raise UserError(
            f"trackers: found {getattr(each, '__name__', type(each).__name__)}, allowed: a name, a spec, or a "
            f"bpfree.Tracker. Derive a class from it{rest}, or use bpfree.trackers.Callback(on_epoch=...); see "
            "docs/callbacks.md"
        )


def make_trackers(listed: Sequence[Spec | Tracker]) -> list[Tracker]:
    """Return the trackers of a list.

    Args:
        listed: names or specs of TRACKERS, "package.module:Class" of the user's, or trackers.

    Raises:
        UserError: an unknown name or option, or two measures or loggers of one name, whose records would be mixed up.

    Example:
        >>> [tracker.every for tracker in make_trackers([{"name": "cost", "every": 5}])]
        [5]
    """
    trackers: list[Tracker] = [
        tracker if isinstance(tracker, Tracker) else build(TRACKERS, tracker, section="tracker", outside=Tracker)
        for tracker in listed
    ]
    names = [tracker.name for tracker in trackers if isinstance(tracker, Measure | Logger)]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise UserError(f"trackers: found {repeated[0]} {len(repeated)} times, allowed: once")
    return trackers


__all__ = [
    "LOGGERS",
    "MEASURES",
    "TRACKERS",
    "BPCosine",
    "Callback",
    "Cost",
    "Gradients",
    "LocalLoss",
    "Logger",
    "MLflow",
    "Measure",
    "Record",
    "SegmentAccuracy",
    "TensorBoard",
    "Tracker",
    "WandB",
    "WeightAlignment",
    "Weights",
    "make_trackers",
    "refuse_others",
]
