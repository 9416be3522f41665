"""How large weights, gradients and the losses of units are."""

import torch

from bpfree.trackers.base import Measure, read
from bpfree.training.trainer import Trainer
from bpfree.types import Batch, Scalars


class Gradients(Measure):
    """Euclidean norm of each gradient, before it is clipped; those of the rule's own parameters as `rule.<name>`.

    Args:
        every: steps from one measurement to the next; the first step is measured.
    """

    name = "gradients"
    unit = "norm"

    def on_start(self, trainer: Trainer) -> None:
        """Refuse a training whose gradients are freed before one can look."""
        self.needs_gradients(trainer)

    def measure(self, trainer: Trainer, batch: Batch, scalars: Scalars) -> dict[str, float]:
        """Norm by parameter; one without a gradient is left out."""
        parameters = _parameters(trainer)
        return read({name: p.grad.norm() for name, p in parameters.items() if p.grad is not None})


class Weights(Measure):
    """Euclidean norm of each parameter; those of the rule's own as `rule.<name>`.

    Args:
        every: steps from one measurement to the next; the first step is measured.
    """

    name = "weights"
    unit = "norm"

    def measure(self, trainer: Trainer, batch: Batch, scalars: Scalars) -> dict[str, float]:
        """Norm by parameter."""
        return read({name: p.detach().norm() for name, p in _parameters(trainer).items()})


class LocalLoss(Measure):
    """The loss of each of the rule's units on the batch of the step.

    Args:
        every: steps from one measurement to the next; the first step is measured.
    """

    name = "local_loss"
    unit = "loss"

    def on_start(self, trainer: Trainer) -> None:
        """Refuse a rule that trains the net as one.

        Raises:
            UserError: the rule has one unit.
        """
        if len(trainer.rule.units(trainer.net)) < 2:
            raise self.refuse(
                f"shows the losses of units, but {type(trainer.rule).__name__} trains this net as one unit, whose loss "
                "is recorded anyway. Drop it, or use a local rule such as mono_forward"
            )

    def measure(self, trainer: Trainer, batch: Batch, scalars: Scalars) -> dict[str, float]:
        """Loss by unit.

        Raises:
            UserError: the rule tells none.
        """
        losses = {name.removeprefix("loss/"): loss for name, loss in scalars.items() if name.startswith("loss/")}
        if not losses:
            raise self.refuse(
                f"shows the losses of units, but those of {type(trainer.rule).__name__} have none. Drop it"
            )
        return read(losses)


def _parameters(trainer: Trainer) -> dict[str, torch.nn.Parameter]:
    own = {f"rule.{name}": p for name, p in trainer.rule.named_parameters()}
    return dict(trainer.net.named_parameters()) | own
