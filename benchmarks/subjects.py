"""The subjects of the benchmarks: rules of bpfree, backprop with activation checkpointing, and BioTorch.

BioTorch (https://pypi.org/project/biotorch) is left out if it is not there: `make peers` installs it without its own
dependencies, of which its layers need none but torch.
"""

import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec
from io import StringIO

import torch
from torch import nn
from torch.nn import functional as F

from bpfree.nets import conv, mlp
from bpfree.rule import Rule
from bpfree.rules import RULES, Backprop
from bpfree.tasks import Classify
from bpfree.training.trainer import Trainer
from bpfree.types import Batch, Task

CLASSES = 10


class BioTorch(Rule):
    """A step of BioTorch, in the way of its trainer: forward, loss, backward through its layers."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode

    def gradients(self, net, task, batch, noise):
        """Compute the gradients that the layers of BioTorch write."""
        extra = {"targets": batch.y, "loss_function": F.cross_entropy} if self.mode == "dfa" else {}
        out = net(batch.x, **extra)
        loss = F.cross_entropy(out, batch.y)
        loss.backward()
        return {"loss": loss.detach()}


def trainers(
    names: Sequence[str],
    make_net: Callable[[], nn.Module],
    precision: str = "float32",
    optimizer: str = "adam",
    task: Task | None = None,
) -> dict[str, Trainer]:
    """Return a trainer for each name: a rule, `rule option=value`, `checkpointed`, or `biotorch <mode>`."""
    made = {}
    task = task or Classify(CLASSES)
    for name in names:
        word, _, rest = name.partition(" ")
        net = make_net()
        if word == "biotorch":
            if find_spec("biotorch") is None:
                continue
            with warnings.catch_warnings(), redirect_stdout(StringIO()):  # it prints, and its hooks are deprecated
                warnings.simplefilter("ignore")
                from biotorch.module.biomodule import BioModule

                net = BioModule(net, mode=rest, output_dim=CLASSES)
            rule: Rule = BioTorch(rest)
        elif word == "checkpointed":
            rule = Backprop(checkpoint=True)
        else:
            pairs = dict(part.split("=") for part in rest.split())
            rule = RULES[word](**{k: int(v) if v.isdigit() else v for k, v in pairs.items() if k != "update"})
            compute = {"precision": precision, "update": pairs.get("update", "together")}
            made[name] = Trainer(net, rule, task, optimizer, compute=compute)
            continue
        made[name] = Trainer(net, rule, task, optimizer, compute=precision)
    return made


def mlp_and_batch(batch_size: int = 128) -> tuple[Callable[[], nn.Module], Batch]:
    """Return a maker of MLP 784-1000-1000-1000-10 with tanh, and a batch."""
    batch = Batch(torch.randn(batch_size, 784), torch.randint(0, CLASSES, (batch_size,)))
    return lambda: mlp(784, CLASSES, hidden=[1000] * 3, activation="tanh"), batch


def conv_and_batch(batch_size: int = 128) -> tuple[Callable[[], nn.Module], Batch]:
    """Return a maker of a net (convolutions of 32, 64, 128 channels, a hidden layer of 256), and a batch of 3x32x32."""
    batch = Batch(torch.randn(batch_size, 3, 32, 32), torch.randint(0, CLASSES, (batch_size,)))

    def make() -> nn.Module:
        return conv((3, 32, 32), CLASSES, channels=[32, 64, 128], hidden=256).to(memory_format=torch.channels_last)

    return make, batch
