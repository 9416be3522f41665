"""Trackers of the norms of weights and gradients, and of the losses of units."""

import torch

from bpfree.trackers.base import Measure, read
from bpfree.training.trainer import Trainer
from bpfree.types import Batch, Scalars


class Gradients(Measure):
    """Euclidean norm of each gradient before clipping. Parameters of the rule are named `rule.<name>`.

    Args:
        every: number of steps from one measurement to the next. The first step is measured.
    """

    name = "gradients"
    unit = "norm"

    def on_start(self, trainer: Trainer) -> None:
        """Refuse a training in which gradients are freed before they can be read.

        Args:
            trainer: the trainer. Its rule is bound.

        Raises:
            UserError: the trainer has `update: fused`.
        """
        self.needs_gradients(trainer)

    def measure(self, trainer: Trainer, batch: Batch, scalars: Scalars) -> dict[str, float]:
        """Return the norm of each gradient; a parameter without one is left out.

        Args:
            trainer: the trainer, within a step.
            batch: the batch of the step.
            scalars: the values that the rule returned.
        """
        parameters = _parameters(trainer)
        return read({name: p.grad.norm() for name, p in parameters.items() if p.grad is not None})


class Weights(Measure):
    """Euclidean norm of each parameter. Parameters of the rule are named `rule.<name>`.

    Args:
        every: number of steps from one measurement to the next. The first step is measured.
    """

    name = "weights"
    unit = "norm"

    def measure(self, trainer: Trainer, batch: Batch, scalars: Scalars) -> dict[str, float]:
        """Return the norm of each parameter.

        Args:
            trainer: the trainer, within a step.
            batch: the batch of the step.
            scalars: the values that the rule returned.
        """
        return read({name: p.detach().norm() for name, p in _parameters(trainer).items()})


class LocalLoss(Measure):
    """Loss of each of the rule's units on the batch of the step.

    Args:
        every: number of steps from one measurement to the next. The first step is measured.
    """

    name = "local_loss"
    unit = "loss"

    def on_start(self, trainer: Trainer) -> None:
        """Refuse a rule that trains the net as one unit.

        Args:
            trainer: the trainer. Its rule is bound.

        Raises:
            UserError: the rule has one unit.
        """
        if len(trainer.rule.units(trainer.net)) < 2:
            raise self.refuse(
                f"shows the losses of units, but {type(trainer.rule).__name__} trains this net as one unit, whose loss "
                "is recorded anyway. Drop this tracker, or use a local rule such as mono_forward"
            )

    def measure(self, trainer: Trainer, batch: Batch, scalars: Scalars) -> dict[str, float]:
        """Return the loss of each unit.

        Args:
            trainer: the trainer, within a step.
            batch: the batch of the step.
            scalars: the values that the rule returned.

        Raises:
            UserError: the rule does not return losses of units.
        """
        # Not computed here: rules return these losses anyway.
        losses = {name.removeprefix("loss/"): loss for name, loss in scalars.items() if name.startswith("loss/")}
        if not losses:
            raise self.refuse(
                f"shows the losses of units, but {type(trainer.rule).__name__} does not return any. Drop this tracker"
            )
        return read(losses)


def _parameters(trainer: Trainer) -> dict[str, torch.nn.Parameter]:
    of_rule = {f"rule.{name}": p for name, p in trainer.rule.named_parameters()}
    return dict(trainer.net.named_parameters()) | of_rule
