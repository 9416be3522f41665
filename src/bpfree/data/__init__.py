"""Data sets, the minibatches made from them, and what a net must know about its data."""

from bpfree.data.arrays import make_dataset
from bpfree.data.augment import Augment
from bpfree.data.batches import Batches
from bpfree.data.dataset import Dataset
from bpfree.data.files.download import data_directory
from bpfree.data.labels import Labels
from bpfree.data.preprocess import Preprocess
from bpfree.data.sets.facts import FACTS, Facts
from bpfree.data.sets.readers import DATASETS
from bpfree.data.split import Split
from bpfree.data.transforms import PerSample

__all__ = [
    "DATASETS",
    "FACTS",
    "Augment",
    "Batches",
    "Dataset",
    "Facts",
    "Labels",
    "PerSample",
    "Preprocess",
    "Split",
    "data_directory",
    "make_dataset",
]
