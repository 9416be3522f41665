"""Deep nets: they are the published ones, and every rule of segments or feedback can train them."""

import pytest
import torch
from torch import nn

from bpfree import UserError, fit, owners
from bpfree.local.segments import stages
from bpfree.nets import NETS
from bpfree.rules import BRSF, FA, FRSF, USF
from tests.helpers import IN_SHAPE, bound
from tests.rules.test_fa import compare


def parameters(name, shape, out, **options):
    with torch.device("meta"):
        return sum(p.numel() for p in NETS[name](shape, out, **options).parameters())


@pytest.mark.parametrize(
    ("name", "expected"), [("resnet18", 11_689_512), ("resnet34", 21_797_672), ("resnet50", 25_557_032)]
)
def test_resnets_on_imagenet_have_the_known_number_of_parameters(name, expected):
    assert parameters(name, (3, 224, 224), 1000) == expected


@pytest.mark.parametrize(
    ("shape", "out", "scale", "millions"),
    [
        ((3, 32, 32), 10, 1, 8.9),
        ((3, 32, 32), 100, 1, 9.0),
        ((1, 28, 28), 10, 1, 7.3),
        ((1, 28, 28), 10, 2, 28.2),
    ],
)
def test_vgg8b_has_the_published_number_of_parameters(shape, out, scale, millions):
    """On CIFAR-10, CIFAR-100 and MNIST, and twice as wide."""
    assert round(parameters("vgg8b", shape, out, scale=scale) / 1e6, 1) == millions


def test_a_conv_net_without_a_hidden_layer():
    options = {"channels": [16, 32], "kernel": 5, "hidden": None}
    assert parameters("conv", (1, 28, 28), 10, **options) == 28_938
    net = NETS["conv"]((1, 28, 28), 10, **options)
    assert stages(net) == ("act1", "act2")
    assert net(torch.randn(2, 1, 28, 28)).shape == (2, 10)
    with pytest.raises(UserError, match="net.kernel: found 4, allowed: an odd number"):
        NETS["conv"]((1, 28, 28), 10, kernel=4)


def test_the_segments_of_a_resnet_are_its_blocks():
    net = NETS["resnet50"]((3, 64, 64), 10, width=4)
    blocks = tuple(name for name, _ in net.named_children() if name.startswith("block"))
    assert len(blocks) == 16
    assert stages(net) == ("act", *blocks)
    assert [type(child) for child in net[:4]] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d]
    assert net(torch.randn(2, 3, 64, 64)).shape == (2, 10)


def test_a_small_image_is_not_shrunk_by_the_stem():
    small, large = (NETS["resnet18"]((3, side, side), 10, width=4) for side in (32, 64))
    with torch.no_grad():
        assert small[:4](torch.randn(2, 3, 32, 32)).shape == (2, 4, 32, 32)
        assert large[:5](torch.randn(2, 3, 64, 64)).shape == (2, 4, 16, 16)


def test_the_segments_of_vgg8b_end_before_dropout_and_pooling():
    net = NETS["vgg8b"]((3, 32, 32), 10, scale=0.05, hidden=16, dropout=0.2)
    segments = owners(net, stages(net), torch.randn(2, 3, 32, 32))
    assert [s.name for s in segments] == ["act1", "act2", "act3", "act4", "act5", "act6", "act", "output"]
    assert [s.shape[-1] for s in segments[:6]] == [32, 32, 16, 16, 8, 4]
    assert sum(len(s.parameters) for s in segments) == len(list(net.parameters()))


@pytest.mark.parametrize("kind", ["resnet18", "resnet50"])
@pytest.mark.parametrize("make", [FA, FRSF, USF, BRSF])
def test_feedback_alignment_with_b_equal_w_is_backprop_on_a_resnet(kind, make, batch):
    torch.manual_seed(0)
    net = NETS[kind](IN_SHAPE, 10, width=2).double().to(batch.x.device)
    rule = bound(make(), net, batch)
    written, true = compare(rule, net, batch)
    assert any(not torch.allclose(written[name], true[name]) for name in true)
    rule.factors = lambda weight, drawn, noise: (weight, 1.0)
    written, true = compare(rule, net, batch)
    assert len(true) == len(list(net.parameters()))
    for name in true:
        torch.testing.assert_close(written[name], true[name], rtol=0, atol=1e-10)


@pytest.mark.parametrize("rule", ["dfa", "mono_forward", "predsim", "usf"])
def test_a_resnet_learns_real_digits(rule, digits_data, device):
    """Far beyond chance, 0.1, in four epochs. The maps of its last blocks have a single pixel."""
    net = {"name": "resnet18", "width": 4}
    run = fit(net, "digits", rule, epochs=4, optimizer={"name": "adam", "lr": 5e-3}, device=str(device))
    assert run.result["test"]["accuracy"] > 0.6


@pytest.mark.parametrize(
    ("spec", "shape", "message"),
    [
        ({"name": "resnet18"}, (64,), r"net resnet: found samples of shape \(64,\), allowed: \[channels"),
        ({"name": "resnet18", "width": 0}, (1, 8, 8), "net.width: found 0, allowed: a number above 0"),
        ({"name": "vgg8b"}, (1, 8, 8), r"net vgg8b: found samples of shape \(1, 8, 8\), allowed: .* >= 16"),
        ({"name": "vgg8b", "scale": 0}, (3, 32, 32), "net.scale: found 0, allowed: a number above 0"),
    ],
)
def test_what_they_refuse(spec, shape, message):
    options = {key: value for key, value in spec.items() if key != "name"}
    with pytest.raises(UserError, match=message):
        NETS[spec["name"]](shape, 10, **options)
