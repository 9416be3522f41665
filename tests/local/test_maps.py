"""Functions of feature maps equal torch's own, in value and derivative, in every memory order."""

import pytest
import torch
from torch.nn import functional as F

from bpfree.local.maps import _WindowMeans, mean_square, std_over_space
from bpfree.rules.cwcomp import _GroupMeans

PAIRS = {
    "std": (std_over_space, lambda h: h.flatten(2).std(2)),
    "windows": (lambda h: _WindowMeans.apply(h, 2), lambda h: F.avg_pool2d(h, 2)),
    "squares of samples": (lambda h: mean_square(h, (1, 2, 3)), lambda h: h.square().mean((1, 2, 3))),
    "squares of channels": (lambda h: mean_square(h, (-2, -1)), lambda h: h.square().mean((2, 3))),
    "groups": (
        lambda h: _GroupMeans.apply(h, 3),
        lambda h: torch.stack([g.square().mean(1) for g in h.tensor_split(3, 1)], 1),
    ),
}


def value_and_error(function, h, error):
    h = h.detach().requires_grad_()
    out = function(h)
    return out, *torch.autograd.grad(out, h, error.expand_as(out).to(out))


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", PAIRS)
def test_it_equals_torchs_own(name, order):
    ours, torchs = PAIRS[name]
    h = torch.randn(4, 5, 8, 6, dtype=torch.float64).relu().contiguous(memory_format=order)
    h[0, 0] = 0  # a channel that does not vary
    torch.manual_seed(0)
    error = torch.randn(torchs(h).shape)
    found, expected = (value_and_error(function, h, error) for function in (ours, torchs))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    assert found[1].stride() == h.stride()


@pytest.mark.parametrize("name", ["std", "squares of samples", "squares of channels", "groups"])
def test_in_16_bits_it_is_as_exact_as_in_a_wide_copy(name):
    ours, torchs = PAIRS[name]
    h = torch.randn(4, 5, 8, 6).relu().bfloat16()
    error = torch.randn(torchs(h).shape)
    value, gradient = value_and_error(ours, h, error)
    expected, exact = value_and_error(torchs, h.double(), error)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected.float(), rtol=1e-5, atol=1e-6)
    assert gradient.dtype == torch.bfloat16
    torch.testing.assert_close(gradient, exact.bfloat16(), rtol=2**-7, atol=1e-6)
