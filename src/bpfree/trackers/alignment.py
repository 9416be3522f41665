"""How far a rule is from backprop: in what it writes, and in the path its errors take."""

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
    """Cosine of the rule's gradients with the true ones, for each layer.

    1 is the direction of backprop, 0 a right angle. The true gradient of the task's loss is taken on the same batch
    with the same dropout masks; for black-box rules without dropout, as they run the net. A layer is a module
    with parameters of its own, weight and bias together; one without a gradient (or with zeros only) is left out. It
    costs a step of backprop, with its memory, every time.

    Args:
        every: steps from one measurement to the next; the first step is measured.
    """

    name = "bp_cosine"
    unit = "cosine"

    def on_start(self, trainer: Trainer) -> None:
        """Refuse a training whose loss is not that of the net's output.

        Raises:
            UserError: the rule predicts by something else than net(x), or gradients are freed before one can look.
        """
        self.needs_gradients(trainer)
        if not trainer.rule.predicts_with_net:
            raise self.refuse(
                f"compares with backprop through net(x), but {type(trainer.rule).__name__} predicts by something else, "
                "so there is no true gradient to compare with. Drop it, or use a rule that predicts by the net's output"
            )

    def measure(self, trainer: Trainer, batch: Batch, scalars: Scalars) -> dict[str, float]:
        """Cosine by layer.

        Raises:
            UserError: the net has no derivative.
        """
        net = trainer.net
        written = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
        for p in net.parameters():
            p.grad = None
        if isinstance(trainer.rule, BlackBoxRule):
            members_mode(net)
        else:
            net.train()
        with trainer.arithmetic():
            Backprop().gradients(net, trainer.task, batch, trainer.noise.at(trainer.progress.step))
        true = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
        if not true:
            raise self.refuse("needs derivatives, but none of the net's parameters gets one from the task's loss")
        layers: dict[str, list[str]] = {}
        for name in true:
            if name in written:
                layers.setdefault(name.rpartition(".")[0] or name, []).append(name)
        joined = {layer: (_joined(written, names), _joined(true, names)) for layer, names in layers.items()}
        return read({layer: a @ b / (a.norm() * b.norm()) for layer, (a, b) in joined.items()})


class WeightAlignment(Measure):
    """Angle between forward weights and the rule's feedback, in degrees, for each layer: 0 is backprop's own path.

    Feedback alignment and sign-symmetry: W_l with B_l, for every layer but the first, which sends no error back. DFA
    and DRTP: W_l with B_l^T B_{l-1}, the output layer with B_L, where a segment has one dense layer from the features
    of the one before; convolutions, and dense layers behind pooling, are left out.

    Args:
        every: steps from one measurement to the next; the first step is measured.
    """

    name = "weight_alignment"
    unit = "degrees"

    def on_start(self, trainer: Trainer) -> None:
        """Refuse a rule without feedback.

        Raises:
            UserError: the rule has no feedback matrix that faces a weight of this net.
        """
        if not trainer.rule.feedback_paths(trainer.net, trainer.noise):
            raise self.refuse(
                f"compares feedback with weights, but {type(trainer.rule).__name__} has no feedback matrices for this "
                "net. Allowed: fa, usf, brsf, frsf; dfa and drtp on nets with dense layers"
            )

    def measure(self, trainer: Trainer, batch: Batch, scalars: Scalars) -> dict[str, float]:
        """Degrees by layer."""
        paths = trainer.rule.feedback_paths(trainer.net, trainer.noise.at(trainer.progress.step))
        return read({layer: angle(forward, feedback) for layer, (forward, feedback) in paths.items()})


@torch.no_grad()
def angle(a: Tensor, b: Tensor) -> Tensor:
    """Degrees between two tensors of one shape, 0-d; exact near 0 too, where an arc cosine is not."""
    a, b = (_wide(t.flatten()) for t in (a, b))
    a, b = a / a.norm(), b / b.norm()
    return 2 * torch.atan2((a - b).norm(), (a + b).norm()) * (180 / math.pi)


def _joined(gradients: dict[str, Tensor], names: list[str]) -> Tensor:
    return _wide(torch.cat([gradients[name].flatten() for name in names]))


def _wide(t: Tensor) -> Tensor:
    return t.float() if t.itemsize < 4 else t
