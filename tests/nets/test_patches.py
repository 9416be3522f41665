"""Nets of patches: the Vision Transformer and the MLP-Mixer are the published ones, and see the whole image."""

import pytest
import torch
from torch import nn

from bpfree import UserError, fit, owners
from bpfree.local.segments import stages
from bpfree.nets import NETS
from bpfree.nets.patches import Patches

IMAGES = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))


def made(name, **options):
    torch.manual_seed(0)
    return NETS[name]((3, 8, 12), 5, **{"width": 8, "depth": 2, **options})


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("vit", {"width": 384, "depth": 12, "heads": 6}, 22_050_664),
        ("vit", {"width": 768, "depth": 12, "heads": 12}, 86_567_656),
        ("mixer", {"width": 512, "depth": 8}, 18_528_264),
        ("mixer", {"width": 768, "depth": 12}, 59_880_472),
    ],
    ids=["ViT-S/16", "ViT-B/16", "Mixer-S/16", "Mixer-B/16"],
)
def test_on_imagenet_they_have_the_published_number_of_parameters(name, options, expected):
    with torch.device("meta"):
        net = NETS[name]((3, 224, 224), 1000, patch=16, **options)
    assert sum(p.numel() for p in net.parameters()) == expected


def test_patches_are_a_linear_map_of_squares_row_by_row():
    torch.manual_seed(0)
    layer = Patches((3, 8, 12), 4, 5)
    h = layer(IMAGES)
    assert h.shape == (2, layer.count, 5) == (2, 6, 5)
    weight, bias = layer.conv.weight.flatten(1), layer.conv.bias
    for n in range(6):
        i, j = 4 * (n // 3), 4 * (n % 3)
        torch.testing.assert_close(h[:, n], IMAGES[:, :, i : i + 4, j : j + 4].flatten(1) @ weight.T + bias)


@pytest.mark.parametrize(("name", "options"), [("vit", {}), ("vit", {"pool": "mean"}), ("mixer", {})])
def test_every_patch_reaches_the_output(name, options):
    net = made(name, **options).eval()
    x = IMAGES.clone().requires_grad_()
    out = net(x)
    assert out.shape == (2, 5)
    out[:, 0].sum().backward()
    assert bool((x.grad.abs() > 0).all())


@pytest.mark.parametrize("pool", ["class", "mean"])
def test_a_vit_without_positions_sees_a_set_of_patches(pool):
    net = made("vit", pool=pool).double()
    x = IMAGES.double()
    mirrored = x.unflatten(3, (3, 4)).flip(3).flatten(3)  # patches in another order, each as it was
    assert not torch.allclose(net(mirrored), net(x), rtol=1e-6)
    nn.init.zeros_(net.patches.positions)
    torch.testing.assert_close(net(mirrored), net(x), rtol=1e-10, atol=1e-12)


def test_a_mixer_tells_patches_apart_by_mixing_tokens_alone():
    net = made("mixer").double()
    x = IMAGES.double()
    mirrored = x.unflatten(3, (3, 4)).flip(3).flatten(3)
    assert not torch.allclose(net(mirrored), net(x), rtol=1e-6)
    for name, p in net.named_parameters():
        if ".tokens." in name:
            nn.init.zeros_(p)
    torch.testing.assert_close(net(mirrored), net(x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["vit", "mixer"])
def test_a_local_rule_cuts_behind_each_block(name):
    net = made(name, depth=3, dropout=0.1)
    assert stages(net) == ("block1", "block2", "pool")
    segments = owners(net, stages(net), IMAGES)
    assert {parameter.partition(".")[0] for parameter in segments[0].parameters} == {"patches", "block1"}
    assert segments[-1].parameters == ("fc.weight", "fc.bias")
    assert sum(len(segment.parameters) for segment in segments) == len(list(net.parameters()))


@pytest.mark.parametrize(("name", "depth"), [("vit", 1), ("mixer", 2)])
def test_a_local_rule_trains_it_on_real_digits(name, depth, device):
    net = {"name": name, "patch": 2, "width": 32, "depth": depth}
    options = {"optimizer": {"name": "adam", "lr": 5e-3}, "batch_size": 32, "device": str(device)}
    run = fit(net, "digits", "mono_forward", epochs=3, **options)
    assert run.result["test"]["accuracy"] > 0.45


@pytest.mark.parametrize("name", ["vit", "mixer"])
@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((64,), {}, r"net: found samples of shape \(64,\), allowed in a net of patches: \[channels, height, width\]"),
        ((1, 8, 6), {}, "net.patch: found 4, allowed: a divisor of the height and the width of the images, 8 and 6"),
        ((1, 8, 8), {"patch": 0}, "net.patch: found 0, allowed: a divisor"),
        ((1, 8, 8), {"width": 0}, "net.width: found 0, allowed: a number above 0"),
        ((1, 8, 8), {"depth": 0}, "net.depth: found 0, allowed: a number above 0"),
        ((1, 8, 8), {"dropout": -0.1}, "net.dropout: found -0.1, allowed: a number from 0 to below 1"),
    ],
)
def test_what_they_refuse(name, shape, options, message):
    with pytest.raises(UserError, match=message):
        NETS[name](shape, 10, **options)


def test_a_vit_reads_a_class_token_or_the_mean():
    with pytest.raises(UserError, match="net.pool: found 'last', allowed: class, mean"):
        made("vit", pool="last")
    assert made("vit", pool="mean").patches.token is None
