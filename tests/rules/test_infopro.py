"""InfoPro: rebuild the sample and tell its class, with weights that change from the first to the last segment."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bpfree import Noise, UserError
from bpfree.nets import NETS
from bpfree.rules import RULES, InfoPro
from bpfree.rules.infopro import contrast
from bpfree.tasks import Classify, Language, Regress
from bpfree.types import Batch
from tests.helpers import TASK, bound, gradients

IMAGES = Batch(torch.randn(8, 3, 8, 8, dtype=torch.float64), torch.arange(8) % 3)


def resnet():
    torch.manual_seed(0)
    return NETS["resnet32"]((3, 8, 8), 10, width=4).double()


def first_features(net):
    return net.act(net.norm(net.conv(IMAGES.x)))


def test_the_equation():
    """lambda_1 BCE(decoder(h), image in [0, 1]) + lambda_2 CE(net(h), y), written out by hand."""
    net = resnet()
    rule = bound(InfoPro(taps=["act", "block1_3"], rebuild=[5.0, 0.5], label=[0.25, 2.0]), net, IMAGES)
    low, high = IMAGES.x.amin((0, 2, 3)), IMAGES.x.amax((0, 2, 3))
    image = (IMAGES.x - low[:, None, None]) / (high - low)[:, None, None]
    h = first_features(net)
    decoder, reader = rule.heads[0].decoder.layers, rule.heads[0].reader
    assert [tuple(m.weight.shape) for m in decoder if isinstance(m, nn.Conv2d)] == [(12, 4, 3, 3), (3, 12, 3, 3)]
    assert (image.amin(), image.amax()) == (0, 1)
    expected = 5.0 * F.binary_cross_entropy(decoder(h).sigmoid(), image) + 0.25 * F.cross_entropy(reader(h), IMAGES.y)
    loss = rule.gradients(net, TASK, IMAGES, Noise())["loss/act"]
    torch.testing.assert_close(loss, expected.detach())
    for p, g in zip(net.conv.parameters(), torch.autograd.grad(expected, list(net.conv.parameters())), strict=True):
        torch.testing.assert_close(p.grad, g)


def test_the_small_net_of_the_authors():
    """It halves the map and doubles the channels, up to the widest of the net."""
    net = resnet()
    rule = bound(InfoPro(), net, IMAGES)
    found = {}
    for tap, head in zip(rule.taps, rule.heads, strict=True):
        found[tap] = [tuple(m.weight.shape) for m in head.reader if isinstance(m, nn.Linear)], head.reader[0]
    for tap, channels, stride in (("act", (4, 8), 2), ("block2_1", (8, 16), 2), ("block3_2", (16, 16), 1)):
        linears, conv = found[tap]
        assert linears == [(128, channels[1]), (10, 128)]
        assert (conv.in_channels, conv.out_channels, conv.stride) == (*channels, (stride, stride))


def test_weights_are_interpolated_between_the_first_and_the_last_hidden_segment():
    net = resnet()
    rule = bound(InfoPro(taps=4, rebuild=[6.0, 0.0], label=[0.0, 3.0]), net, IMAGES)
    assert sum([rule.weights(k) for k in range(4)], ()) == pytest.approx((6, 0, 4, 1, 2, 2, 0, 3))
    assert rule.heads[0].reader is None
    assert rule.heads[3].decoder is None
    assert rule.scores(0, first_features(net)) is None
    one = bound(InfoPro(taps=1, rebuild=[6.0, 0.0], label=[1.0, 3.0]), net, IMAGES)
    assert one.weights(0) == (6, 1)
    with pytest.raises(UserError, match="found 0 for both at segment 1"):
        bound(InfoPro(taps=2, rebuild=[1.0, 0.0], label=[1.0, 0.0]), net, IMAGES)


def test_values_outside_the_range_of_the_first_batch_are_clipped():
    net = resnet()
    rule = bound(InfoPro(taps=1, label=[0.0, 0.0]), net, IMAGES)
    net.eval()
    losses = []
    for far in (1e3, 1e6):  # the label's part is off, and what is rebuilt does not depend on x
        decoder, x = rule.heads[0].decoder.eval(), IMAGES.x.clone()
        x[0, 0, 0, 0] = far
        losses.append(decoder(torch.zeros(8, 8, 4, 4, dtype=torch.float64), x))
    assert torch.equal(*losses)
    assert losses[0] > 0


def test_the_contrastive_loss():
    """The sum over pairs, written out by hand; a sample that is alone in its class counts as 0."""
    torch.manual_seed(0)
    z, y, t = torch.randn(5, 6, dtype=torch.float64), torch.tensor([0, 1, 0, 0, 2]), 0.07
    n = z / z.norm(dim=1, keepdim=True)
    total = z.new_zeros(())
    for i in range(5):
        others = sum(torch.exp(n[i] @ n[k] / t) for k in range(5) if k != i)
        terms = [torch.log(torch.exp(n[i] @ n[j] / t) / others) for j in range(5) if j != i and y[j] == y[i]]
        total = total - sum(terms) / max(1, len(terms)) / 5
    torch.testing.assert_close(contrast(z, y[:, None] == y[None], t), total)
    torch.testing.assert_close(contrast(3 * z, y[:, None] == y[None], t), total)
    assert contrast(z.bfloat16(), y[:, None] == y[None], t).dtype == torch.float32


def test_contrast_needs_one_class_for_each_sample():
    net = resnet()
    rule = bound(InfoPro(loss="contrast", taps=1), net, IMAGES)
    assert rule.heads[0].reader[-1].out_features == 128
    assert rule.scores(0, torch.zeros(2, 8, 4, 4)) is None
    rule.gradients(net, TASK, IMAGES, Noise())
    assert all(p.grad is not None for p in rule.parameters())
    shares = IMAGES._replace(y=torch.full((8, 10), 0.1, dtype=torch.float64))
    for task, batch, said in (
        (Classify(10, label_smoothing=0.1), IMAGES, "label_smoothing would not reach"),
        (Regress(), IMAGES._replace(y=torch.randn(8).double()), "learns from class labels"),
        (TASK, shares, "mixup gives shares"),
    ):
        with pytest.raises(UserError, match=said):
            InfoPro(loss="contrast").bind(net, task, batch)


@pytest.mark.parametrize("name", ["vit", "mixer", "mlp"])
def test_images_are_rebuilt_from_patches_and_from_vectors(name):
    torch.manual_seed(0)
    options = {"hidden": [12, 12]} if name == "mlp" else {"width": 16, "depth": 3, "patch": 2}
    net = NETS[name]((3, 8, 8), 10, **options).double()
    rule = bound(InfoPro(), net, IMAGES)
    rule.gradients(net, TASK, IMAGES, Noise())
    assert all(p.grad.abs().sum() > 0 for p in rule.heads[0].decoder.parameters())
    if name == "vit":  # the class token is left out, and patches keep their places
        h = torch.arange(17.0)[None, :, None].expand(1, 17, 16)
        assert torch.equal(rule.heads[0].decoder.layers[0](h)[0, 3].flatten(), torch.arange(1.0, 17))


def test_tokens_are_rebuilt_by_their_cross_entropy():
    torch.manual_seed(0)
    net, task = NETS["transformer"]((8,), 11, each_step=True, width=16, depth=3, heads=2).double(), Language(11)
    batch = Batch(torch.randint(11, (4, 8)), torch.randint(11, (4, 8)))
    rule = bound(InfoPro(label=[0.0, 0.0], rebuild=[2.0, 1.0]), net, batch, task)
    h = net.block1(net.embed(batch.x))
    expected = 2.0 * F.cross_entropy(rule.heads[0].decoder.layers(h).flatten(0, 1), batch.x.flatten())
    torch.testing.assert_close(rule.gradients(net, task, batch, Noise())["loss/block1"], expected.detach())
    pooled = nn.Sequential(nn.Embedding(11, 6), nn.Flatten(), nn.Linear(48, 6), nn.Tanh(), nn.Linear(6, 10)).double()
    rule = bound(InfoPro(taps=["3"], label=[0.0, 0.0]), pooled, Batch(batch.x, torch.arange(4)))
    logits = rule.heads[0].decoder.layers(pooled[:4](batch.x)).log_softmax(1)  # of which tokens there are
    expected = -5.0 * logits.gather(1, batch.x).mean()
    scalars = rule.gradients(pooled, TASK, Batch(batch.x, torch.arange(4)), Noise())
    torch.testing.assert_close(scalars["loss/3"], expected.detach())


def test_numbers_are_rebuilt_by_their_squared_error():
    torch.manual_seed(0)
    net = NETS["mlp"](7, 2, hidden=[5, 5]).double()
    batch, task = Batch(torch.randn(6, 7).double(), torch.randn(6, 2).double()), Regress((0.0, 0.0), (1.0, 1.0))
    rule = bound(InfoPro(label=[0.0, 0.0], rebuild=[1.0, 1.0]), net, batch, task)
    expected = F.mse_loss(rule.heads[0].decoder.layers(net.act1(net.fc1(batch.x))), batch.x)
    torch.testing.assert_close(rule.gradients(net, task, batch, Noise())["loss/act1"], expected.detach())


def test_deep_supervision_follows_the_sum_of_its_losses():
    net = resnet()
    rule = bound(RULES["deep_supervision"](rule=InfoPro(taps=1)), net, IMAGES)
    scalars = rule.gradients(net, TASK, IMAGES, Noise())
    assert set(scalars) >= {"loss", "loss/block2_2"}
    assert gradients(rule)


@pytest.mark.parametrize("options", [{"rebuild": [1.0]}, {"label": [-1.0, 1.0]}, {"loss": "l2"}, {"temperature": 0}])
def test_wrong_options_are_refused(options):
    with pytest.raises(UserError, match=f"{next(iter(options))}: found"):
        InfoPro(**options)
