"""Trackers of the distance to backprop: of the gradients, and of the feedback that carries the errors."""

import math

import torch
from torch import Tensor

from bpfree.population.rule import BlackBoxRule
from bpfree.population.statistics import members_mode
from bpfree.rules.backprop import Backprop
from bpfree.trackers.base import Measure, read
from bpfree.training.trainer import Trainer
from bpfree.types import Batch, Scalars


class BPCosine(Measure):
    """Cosine of the angle between the rule's gradient and the true one, for each layer.

    1 is the direction of backprop, 0 is a right angle. The true gradient is that of the task's loss on the same batch,
    with the same dropout masks. Black-box rules run the net without dropout, and so do we for them. A layer is a module
    that has parameters itself; weight and bias count as one vector. A layer whose gradient is missing or zero is left
    out. Each measurement costs as much time and memory as a step of backprop.

    Args:
        every: number of steps from one measurement to the next. The first step is measured.
    """

    name = "bp_cosine"
    unit = "cosine"

    def on_start(self, trainer: Trainer) -> None:
        """Refuse a training that does not have a true gradient to compare with.

        Args:
            trainer: the trainer. Its rule is bound.

        Raises:
            UserError: the rule's prediction is not net(x), or the gradients are freed before they can be read.
        """
        self.needs_gradients(trainer)
        if not trainer.rule.predicts_with_net:
            raise self.refuse(
                f"compares with backprop through net(x), but the prediction of {type(trainer.rule).__name__} is not "
                "net(x), so the true gradient does not exist. Drop this tracker, or use a rule that predicts by net(x)"
            )

    def measure(self, trainer: Trainer, batch: Batch, scalars: Scalars) -> dict[str, float]:
        """Return the cosine of each layer.

        Args:
            trainer: the trainer, within a step.
            batch: the batch of the step.
            scalars: the values that the rule returned.

        Raises:
            UserError: the net has no derivative.
        """
        net = trainer.net
        # `.grad` of net and rule may be overwritten here: the base class restores both afterwards.
        written = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
        for p in net.parameters():
            p.grad = None  # rules add to `.grad`
        # The mode in which the rule ran the net, so that both gradients are of the same function.
        if isinstance(trainer.rule, BlackBoxRule):
            members_mode(net)
        else:
            net.train()
        with trainer.arithmetic():
            # The key of this step: dropout then draws the masks that the rule's gradients were computed with.
            Backprop().gradients(net, trainer.task, batch, trainer.step_noise)
        exact = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
        if not exact:
            raise self.refuse("needs derivatives, but none of the net's parameters gets one from the task's loss")
        layers: dict[str, list[str]] = {}
        for name in exact:
            if name in written:
                layers.setdefault(name.rpartition(".")[0] or name, []).append(name)
        joined = {layer: (_joined(written, names), _joined(exact, names)) for layer, names in layers.items()}
        # A gradient of zeros gives 0 / 0, and the base class leaves out values that are not finite.
        return read({layer: a @ b / (a.norm() * b.norm()) for layer, (a, b) in joined.items()})


class WeightAlignment(Measure):
    """Angle between forward weights and the rule's feedback, for each layer, in degrees. 0 is the feedback of backprop.

    Feedback alignment and sign-symmetry: W_l with B_l, for every layer but the first, whose input has no error. DFA and
    DRTP: W_l with B_l^T B_{l-1}, and the output layer with B_L. This needs segments with one dense layer each,
    whose input are the features of the segment before. Convolutions, and dense layers after pooling, are left out.

    Args:
        every: number of steps from one measurement to the next. The first step is measured.
    """

    name = "weight_alignment"
    unit = "degrees"

    def on_start(self, trainer: Trainer) -> None:
        """Refuse a rule without feedback matrices.

        Args:
            trainer: the trainer. Its rule is bound.

        Raises:
            UserError: the rule does not have a feedback matrix of the shape of a weight of this net.
        """
        if not trainer.rule.feedback_paths(trainer.net, trainer.noise):
            raise self.refuse(
                f"compares feedback with weights, but {type(trainer.rule).__name__} has no feedback matrices for this "
                "net. Allowed: fa, usf, brsf, frsf; dfa and drtp on nets with dense layers"
            )

    def measure(self, trainer: Trainer, batch: Batch, scalars: Scalars) -> dict[str, float]:
        """Return the angle of each layer, in degrees.

        Args:
            trainer: the trainer, within a step.
            batch: the batch of the step.
            scalars: the values that the rule returned.
        """
        paths = trainer.rule.feedback_paths(trainer.net, trainer.noise.at(trainer.progress.step))
        return read({layer: angle(forward, feedback) for layer, (forward, feedback) in paths.items()})


@torch.no_grad()
def angle(a: Tensor, b: Tensor) -> Tensor:
    """Return the angle between two tensors of one shape as vectors, 0-d, in degrees.

    Args:
        a, b: the tensors, not 0.

    Reference:
        Kahan 2006, "How Futile are Mindless Assessments of Roundoff in Floating-Point Computation?", section 12. Near 0
        the formula is exact; an arc cosine would lose half of the digits there.
    """
    a, b = (_wide(t.flatten()) for t in (a, b))
    a, b = a / a.norm(), b / b.norm()
    return 2 * torch.atan2((a - b).norm(), (a + b).norm()) * (180 / math.pi)


def _joined(gradients: dict[str, Tensor], names: list[str]) -> Tensor:
    return _wide(torch.cat([gradients[name].flatten() for name in names]))


def _wide(t: Tensor) -> Tensor:
    # Norms of long bfloat16 vectors would lose most digits, and those of float16 would overflow.
    return t.float() if t.itemsize < 4 else t
