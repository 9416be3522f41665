"""What is watched while training. The trainer tells, trackers listen; none changes what is learned.

`TRACKERS` is the table that the config goes by; a tracker of one's own is a `Measure` with a name and one method.
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


def make_trackers(listed: Sequence[Spec | Tracker]) -> list[Tracker]:
    """Trackers by name or spec, or as they are.

    Raises:
        UserError: two have the same name, so that nobody could tell their records apart.
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
