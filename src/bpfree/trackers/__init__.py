"""What is watched while training. The trainer tells, trackers listen; none changes what is learned.

`TRACKERS` is the table that the config goes by; a tracker of one's own is a `Measure` with a name and one method.
"""

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
]
