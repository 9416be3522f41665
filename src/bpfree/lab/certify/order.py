"""The order of the layers of a net, whatever rule trains them."""

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import torch

from bpfree.inputs import forward
from bpfree.lab.certify.bench import Bench
from bpfree.lab.certify.layers import all_trainable
from bpfree.lab.certify.walk import Walk
from bpfree.nets.unchanged import unchanged_buffers
from bpfree.noise import Noise


class Order(NamedTuple):
    """The order of the net's layers in `net(x)`.

    Attributes:
        before: for each layer, the layers that its input is computed from.
        longest: a function that returns the largest number of the given layers on one path through the net.
    """

    before: Mapping[str, Collection[str]]
    longest: Callable[[Collection[str]], int]

    @staticmethod
    def of(bench: Bench) -> "Order":
        """Return the order that the graph of a forward pass shows.

        Without such a graph (nets without derivatives, nets that only the rule knows how to call) the order of
        definition is used.

        Args:
            bench: has the net and a batch.
        """
        layers = bench.layers
        # A frozen layer would leave no trace in the graph; a forward pass in training mode would update batch norm.
        contexts = all_trainable(bench.net), unchanged_buffers(bench.net), Noise().global_rng(bench.batch.device)
        with contexts[0], contexts[1], contexts[2], torch.enable_grad():
            try:
                out = forward(bench.net, bench.batch.x)
            except (RuntimeError, ValueError, TypeError, IndexError):  # only the rule knows how to call this net
                out = None
            walk = Walk([out], layers, len(bench.batch.y)) if isinstance(out, torch.Tensor) else None
            before = walk.layers_before() if walk else {}
        if walk is None or not set(layers.net) <= before.keys():
            by_definition = {layer: layers.net[:i] for i, layer in enumerate(layers.net)}
            return Order(by_definition, len)
        return Order(before, walk.longest)
