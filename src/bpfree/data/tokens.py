"""Whether integers are tokens, which a net looks up, or numbers, which it computes with."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from bpfree.data.dataset import Preprocess
from bpfree.inputs import one_tensor

_LOOK_UP = (nn.Embedding, nn.EmbeddingBag)


def tells_numbers(preprocess: Preprocess, net: nn.Module | None) -> Preprocess:
    """The preprocessing of integer samples for a net: it makes floating numbers of them unless the net takes integers.

    A net takes integers if it has an `nn.Embedding`, or if a copy of it gives an output for integers. Samples of
    several inputs pass as they are.

    Args:
        preprocess: of the samples.
        net: that is to learn from them; None leaves it open.
    """
    if net is None or preprocess.inputs or not preprocess.has_tokens:
        return preprocess
    if any(isinstance(module, _LOOK_UP) for module in net.modules()):
        return preprocess
    tokens = one_tensor(preprocess.blank(2))
    takes_numbers = _runs(net, tokens.to(torch.get_default_dtype()))
    return preprocess.as_numbers() if takes_numbers and not _runs(net, tokens) else preprocess


def _runs(net: nn.Module, x: Tensor) -> bool:
    """Whether a copy of the net gives an output."""
    try:
        tried: Any = copy.deepcopy(net).eval()
        first = next((p for p in net.parameters() if not nn.parameter.is_lazy(p)), None)
        if first is not None:
            x = x.to(first.device, first.dtype if x.is_floating_point() else x.dtype)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            tried(x)
    except Exception:  # whatever a net raises that cannot use them
        return False
    return True
