"""The protocol of a trained run, as far as pictures need one."""

from typing import Any, Protocol

from torch import Tensor, nn

from bpfree.data import Batches, Preprocess, Split
from bpfree.tasks import DataTask
from bpfree.training.listener import Record
from bpfree.training.trainer import Trainer


class TrainedRun(Protocol):
    """A trained net with all that pictures ask about it; `bpfree.Run` is one.

    A protocol and not the class itself, because saving a run draws its pictures: `runs` imports `pictures`, and two
    rooms must not import each other.
    """

    @property
    def net(self) -> nn.Module:
        """The net, with its trained weights."""

    @property
    def task(self) -> DataTask:
        """The task that the net was trained for."""

    @property
    def trainer(self) -> Trainer:
        """The trainer, which holds net and rule."""

    @property
    def preprocess(self) -> Preprocess:
        """The function from raw samples to the input of the net."""

    @property
    def test(self) -> Split | None:
        """The test split, if there is one."""

    @property
    def metrics(self) -> list[Record]:
        """The records of the epochs, as in metrics.jsonl."""

    @property
    def tracked(self) -> list[Record]:
        """The records of all trackers, as in metrics.jsonl."""

    def batches(self, split: Split) -> Batches:
        """Return the batches of a split in order, for evaluation."""

    def predict(self, x: Any) -> Tensor:
        """Return the predictions for raw samples, in the form of the labels."""

    def predict_proba(self, x: Any) -> Tensor:
        """Return the probability of each class for raw samples, [N, C]."""
