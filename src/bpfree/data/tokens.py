"""Find out if integer samples are tokens, which a net looks up in a table, or numbers, which it computes with."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from bpfree.data.preprocess import Preprocess
from bpfree.inputs import one_tensor

_LOOK_UP = (nn.Embedding, nn.EmbeddingBag)


def preprocess_for_net(preprocess: Preprocess, net: nn.Module | None) -> Preprocess:
    """Return the preprocessing of integer samples for a net: they become floating numbers if the net needs those.

    A net takes integers if it has an `nn.Embedding`, or if a copy of it gives an output for integers. Samples of
    several inputs pass as they are, and so do samples that are not integers.

    Args:
        preprocess: the preprocessing of the training data.
        net: the net that will learn from the samples; None leaves the question open.
    """
    if net is None or preprocess.inputs or not preprocess.has_tokens:
        return preprocess
    if any(isinstance(module, _LOOK_UP) for module in net.modules()):
        return preprocess
    tokens = one_tensor(preprocess.blank(2))
    takes_numbers = _runs(net, tokens.to(torch.get_default_dtype()))
    return preprocess.as_numbers() if takes_numbers and not _runs(net, tokens) else preprocess


def _runs(net: nn.Module, x: Tensor) -> bool:
    """Return True if a copy of the net gives an output for x."""
    try:
        # A copy in evaluation mode: a forward pass may initialise lazy layers or change the statistics of batch norm.
        tried: Any = copy.deepcopy(net).eval()
        first = next((p for p in net.parameters() if not nn.parameter.is_lazy(p)), None)
        if first is not None:
            x = x.to(first.device, first.dtype if x.is_floating_point() else x.dtype)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            tried(x)
    except Exception:  # a net may raise anything for an input that it cannot use
        return False
    return True
