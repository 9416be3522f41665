"""A closed-form readout at the end of training: ridge regression of the targets on the last features.

    min_{W, b}  mean_N |W h + b - y|^2 + ridge |W|^2,    h the input of the net's last Linear layer

W and b replace those of that layer; any rule may have trained the layers below. The outputs are then near 0 and 1. They
are not logits: their argmax is the class, but their cross-entropy does not mean much.
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
    """Replaces the net's last Linear layer by ridge regression, when `fit` is called after training.

    It listens to the training too, so that a net or task that it cannot work with is refused before the first step.

    Args:
        batches: batches of the training samples, not augmented.
        ridge: factor of the penalty on the squares of the weights. The bias has no penalty.
    """

    def __init__(self, batches: Batches, ridge: float) -> None:
        self.batches = batches
        self.ridge = ridge

    def on_start(self, trainer: Trainer) -> None:
        """Refuse a training at whose end the readout would fail.

        Args:
            trainer: the trainer.

        Raises:
            UserError: the task's targets are not for least squares, or the rule does not predict by a Linear layer.
        """
        batch = next(self.batches.epoch())
        kind = kind_of(trainer.task)
        if kind not in ("classify", "regress"):
            raise UserError(
                f"readout: found 'ridge' for the task {kind}, allowed: classify, regress. Use readout: none"
            )
        last_linear(trainer, batch.x)

    @torch.no_grad()
    def fit(self, trainer: Trainer) -> None:
        """Compute weight and bias of the last layer, in one pass over the samples in evaluation mode.

        Args:
            trainer: the trainer, with its training over.
        """
        layer = last_linear(trainer, next(self.batches.epoch()).x)
        gram, moment = self._moments(trainer, layer)
        penalty = torch.full((len(gram),), self.ridge, dtype=torch.float64)
        penalty[layer.in_features :] = 0  # of the bias, if there is one
        solution = torch.linalg.solve(gram + penalty.diag(), moment)  # [F + 1, D]
        layer.weight.copy_(solution[: layer.in_features].T)
        if layer.bias is not None:
            layer.bias.copy_(solution[-1])

    def _moments(self, trainer: Trainer, layer: nn.Linear) -> tuple[Tensor, Tensor]:
        """Return the means of h h^T [F + 1, F + 1] and h y^T [F + 1, D]; F instead of F + 1 without a bias."""
        features: list[Tensor] = []
        gram, moment, samples = torch.zeros(()), torch.zeros(()), 0
        handle = layer.register_forward_pre_hook(lambda module, args: features.append(args[0]))
        try:
            for batch in self.batches.epoch():
                trainer.predict(batch.x)
                # The last call: a rule may run the net several times. float64, because h h^T squares the condition
                # number.
                h = features[-1].cpu().double()
                features.clear()
                h = h if layer.bias is None else nn.functional.pad(h, (0, 1), value=1.0)  # [B, F + 1]
                gram = gram + h.T @ h
                moment = moment + h.T @ trainer.task.target(batch).cpu().double()
                samples += len(h)
        finally:
            handle.remove()
        return gram / samples, moment / samples


def last_linear(trainer: Trainer, x: Inputs) -> nn.Linear:
    """Return the layer whose output is the rule's prediction.

    Args:
        trainer: the trainer, whose rule is bound.
        x: samples [B, ...], to run the net once.

    Raises:
        UserError: the net does not have such a layer.
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
        # The same tensor, not an equal one: what comes after the layer, even a ReLU, is not part of the readout.
        if out is predicted and out.dim() == 2:
            return layer
    rule, net = type(trainer.rule).__name__, type(trainer.net).__name__
    raise UserError(
        f"readout: found 'ridge', but the prediction of {rule} with {net} is not the output of a Linear layer of the "
        "net. Use readout: none, or a rule and a net that end in one"
    )
