"""Trackers: objects that follow a training and record measurements. They do not change the result of the training.

A config names the entries of `TRACKERS`. For a tracker of your own, derive a class from `Measure`, with a name and the
method `measure`.
"""

from collections.abc import Sequence

from bpfree.errors import UserError
from bpfree.spec import Spec, build
from bpfree.trackers.alignment import BPCosine, WeightAlignment
from bpfree.trackers.base import Measure, Record, Tracker
from bpfree.trackers.cost import Cost
from bpfree.trackers.depth import SegmentAccuracy
from bpfree.trackers.norms import Gradients, LocalLoss, Weights

TRACKERS: dict[str, type[Measure]] = {
    "bp_cosine": BPCosine,
    "weight_alignment": WeightAlignment,
    "gradients": Gradients,
    "weights": Weights,
    "local_loss": LocalLoss,
    "segment_accuracy": SegmentAccuracy,
    "cost": Cost,
}
"""Every tracker by its name. `bpfree list trackers` shows them."""


def make_trackers(listed: Sequence[Spec | Tracker]) -> list[Tracker]:
    """Return the trackers of a list.

    Args:
        listed: names or specs of TRACKERS, "package.module:Class" of the user's, or trackers.

    Raises:
        UserError: an unknown name or option, or two measures of one name, whose records would be mixed up.

    Example:
        >>> [tracker.every for tracker in make_trackers([{"name": "cost", "every": 5}])]
        [5]
    """
    trackers: list[Tracker] = [
        tracker if isinstance(tracker, Tracker) else build(TRACKERS, tracker, section="tracker", outside=Tracker)
        for tracker in listed
    ]
    names = [tracker.name for tracker in trackers if isinstance(tracker, Measure)]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise UserError(f"trackers: found {repeated[0]} {len(repeated)} times, allowed: once")
    return trackers


__all__ = [
    "TRACKERS",
    "BPCosine",
    "Cost",
    "Gradients",
    "LocalLoss",
    "Measure",
    "Record",
    "SegmentAccuracy",
    "Tracker",
    "WeightAlignment",
    "Weights",
    "make_trackers",
]
