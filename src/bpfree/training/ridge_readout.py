"""A closed-form read-out at the end of training: ridge regression of the targets on the last features.

    min_{W, b}  mean_N |W h + b - y|^2 + ridge |W|^2,    h the input of the net's last Linear layer

W and b replace those of that layer, whatever rule trained what lies below it. Scores are then near 0 and 1 and no
logits: their argmax is the class, and a cross-entropy of them means little.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from bpfree.data import Batches
from bpfree.errors import UserError
from bpfree.inputs import Inputs
from bpfree.training.listener import Listener
from bpfree.training.trainer import Trainer
from bpfree.types import kind_of

Readout = Literal["none", "ridge"]


class Ridge(Listener[Trainer]):
    """Ridge regression in place of the net's last Linear layer. As a tracker it refuses before training what cannot be.

    Args:
        batches: of the training samples, not augmented.
        ridge: penalty on the squares of the weights; the bias goes free.
    """

    def __init__(self, batches: Batches, ridge: float) -> None:
        self.batches = batches
        self.ridge = ridge

    def on_start(self, trainer: Trainer) -> None:
        """See `last_linear` for what is refused, besides tasks whose output is no least-squares one."""
        batch = next(self.batches.epoch())
        what = kind_of(trainer.task)
        if what not in ("classify", "regress"):
            raise UserError(
                f"readout: found 'ridge' for the task {what}, allowed: classify, regress. Use readout: none"
            )
        last_linear(trainer, batch.x)

    @torch.no_grad()
    def fit(self, trainer: Trainer) -> None:
        """Solve for weight and bias of the last layer, in one pass over the samples in evaluation mode."""
        layer = last_linear(trainer, next(self.batches.epoch()).x)
        gram, moment = self._moments(trainer, layer)
        penalty = torch.full((len(gram),), self.ridge, dtype=torch.float64)
        penalty[layer.in_features :] = 0
        solution = torch.linalg.solve(gram + penalty.diag(), moment)  # [F + 1, D]
        layer.weight.copy_(solution[: layer.in_features].T)
        if layer.bias is not None:
            layer.bias.copy_(solution[-1])

    def _moments(self, trainer: Trainer, layer: nn.Linear) -> tuple[Tensor, Tensor]:
        """Means of h h^T [F + 1, F + 1] and h y^T [F + 1, D], h with a 1 behind it if the layer has a bias."""
        features: list[Tensor] = []
        gram, moment, samples = torch.zeros(()), torch.zeros(()), 0
        handle = layer.register_forward_pre_hook(lambda module, args: features.append(args[0]))
        try:
            for batch in self.batches.epoch():
                trainer.predict(batch.x)
                h = features[-1].cpu().double()
                features.clear()
                h = h if layer.bias is None else nn.functional.pad(h, (0, 1), value=1.0)
                gram = gram + h.T @ h
                moment = moment + h.T @ trainer.task.target(batch).cpu().double()
                samples += len(h)
        finally:
            handle.remove()
        return gram / samples, moment / samples


def last_linear(trainer: Trainer, x: Inputs) -> nn.Linear:
    """The layer whose output on samples x is what the rule predicts.

    Raises:
        UserError: there is none.
    """
    outputs: list[tuple[nn.Linear, Tensor]] = []
    layers = [module for module in trainer.net.modules() if isinstance(module, nn.Linear)]
    handles = [layer.register_forward_hook(lambda layer, args, out: outputs.append((layer, out))) for layer in layers]
    try:
        predicted = trainer.predict(x)
    finally:
        for handle in handles:
            handle.remove()
    for layer, out in outputs:
        if out is predicted and out.dim() == 2:
            return layer
    rule, net = type(trainer.rule).__name__, type(trainer.net).__name__
    raise UserError(
        f"readout: found 'ridge', but what {rule} predicts with {net} is not the output of a Linear layer of the net. "
        "Use readout: none, or a rule and a net that end in one"
    )
