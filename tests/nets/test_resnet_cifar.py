"""The residual nets of CIFAR are those of the paper: their depth, their size, and shortcuts without parameters."""

import pytest
import torch
from torch import nn

from bpfree import UserError, fit
from bpfree.local.segments import stages
from bpfree.nets import NETS
from bpfree.nets.resnet import PaddedShortcut
from bpfree.rules import FA
from tests.helpers import IN_SHAPE, bound
from tests.rules.test_fa import compare


@pytest.mark.parametrize(
    ("name", "shortcut", "layers", "expected"),
    [("resnet32", "pad", 32, 464_154), ("resnet110", "pad", 110, 1_727_962), ("resnet32", "conv", 34, 466_906)],
)
def test_they_have_the_published_layers_and_parameters(name, shortcut, layers, expected):
    """0.46 and 1.7 million in table 6 of the paper."""
    with torch.device("meta"):
        net = NETS[name]((3, 32, 32), 10, shortcut=shortcut)
    assert sum(p.numel() for p in net.parameters()) == expected
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in net.modules()) == layers


def test_the_segments_are_the_blocks_and_halve_twice():
    net = NETS["resnet32"]((3, 32, 32), 10, width=2)
    blocks = tuple(f"block{level}_{i}" for level in (1, 2, 3) for i in range(1, 6))
    assert stages(net) == ("act", *blocks)
    shapes = []
    for name in ("act", "block1_5", "block2_1", "block2_5", "block3_1", "block3_5"):
        net.get_submodule(name).register_forward_hook(lambda _module, _x, h: shapes.append(tuple(h.shape[1:])))
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert shapes == [(2, 32, 32)] * 2 + [(4, 16, 16)] * 2 + [(8, 8, 8)] * 2


@pytest.mark.parametrize("side", [8, 7])
def test_a_padded_shortcut_is_every_second_pixel_and_zeros(side):
    x = torch.randn(2, 3, side, side)
    h = PaddedShortcut(3, 2)(x)
    assert h.shape == (2, 6, 4, 4)
    assert torch.equal(h[:, :3], x[:, :, ::2, ::2])
    assert not h[:, 3:].any()


def test_shortcuts_carry_an_image_through_blocks_that_add_nothing():
    net = NETS["resnet32"]((3, 32, 32), 10, width=4).eval()
    for name, module in net.named_modules():
        if ".body." in f".{name}." and isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.weight)
    stem, blocks = net[:3], net[3:-3]
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        h, out = stem(x), blocks(stem(x))
    assert torch.equal(out[:, :4], h[:, :, ::4, ::4])
    assert not out[:, 4:].any()


def test_feedback_alignment_with_b_equal_w_is_backprop(batch):
    torch.manual_seed(0)
    net = NETS["resnet32"](IN_SHAPE, 10, width=2).double().to(batch.x.device)
    rule = bound(FA(), net, batch)
    rule.factors = lambda weight, drawn, noise: (weight, 1.0)
    written, true = compare(rule, net, batch)
    assert len(true) == len(list(net.parameters()))
    for name in true:
        torch.testing.assert_close(written[name], true[name], rtol=0, atol=1e-9)


def test_it_learns_real_digits(device):
    options = {"optimizer": {"name": "adam", "lr": 5e-3}, "batch_size": 32, "device": str(device)}
    run = fit({"name": "resnet32", "width": 4}, "digits", "backprop", epochs=1, **options)
    assert run.result["test"]["accuracy"] > 0.4


@pytest.mark.parametrize("name", ["resnet32", "resnet110"])
def test_what_they_refuse(name):
    with pytest.raises(UserError, match=r"net resnet: found samples of shape \(64,\), allowed: \[channels"):
        NETS[name]((64,), 10)
    with pytest.raises(UserError, match="net.width: found 0, allowed: a number above 0"):
        NETS[name]((1, 8, 8), 10, width=0)
    with pytest.raises(UserError, match="net.shortcut: found 'none', allowed: pad, conv"):
        NETS[name]((1, 8, 8), 10, shortcut="none")
