"""AugLocal: auxiliary nets from the layers that follow a segment."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bpfree import Noise, UserError
from bpfree.local.heads.copies import Adapter, fresh
from bpfree.local.heads.stages import stages_of
from bpfree.nets import NETS
from bpfree.nets.resnet import Residual
from bpfree.rules import AugLocal
from bpfree.rules.auglocal import layers_after
from bpfree.tasks import Classify, Language
from bpfree.types import Batch
from tests.helpers import TASK, bound, gradients

IMAGES = Batch(torch.randn(4, 3, 16, 16, dtype=torch.float64), torch.arange(4))


def resnet(**options):
    torch.manual_seed(0)
    return NETS["resnet32"]((3, 16, 16), 10, width=4, **options).double()


def test_the_layers_of_the_formula():
    """Those of the authors' code for ResNet-32, which has 16 layers, and all that are left where there are fewer."""
    assert layers_after(0, 16, 3) == [5, 10, 15]
    assert layers_after(5, 16, 4) == [8, 10, 12, 15]  # 7.5 and 12.5 are rounded to even numbers, as in their Python
    assert layers_after(13, 16, 3) == layers_after(13, 16, 2) == [14, 15]
    assert layers_after(15, 16, 2) == []


@pytest.mark.parametrize("depth", [1, 3, 6])
def test_the_pyramid_of_depths(depth):
    """For K = 16 the depths of the authors' code, which falls from d to half of it."""
    rule = AugLocal(depth=depth)
    rule.taps = tuple(map(str, range(15)))
    expected = [max(1, round(depth * (1 - i * 0.5 / 14) + i * 0.5 / 14)) for i in range(15)]
    assert [rule.depth_of(i) for i in range(15)] == expected
    rule.pyramid = 0
    assert {rule.depth_of(i) for i in range(15)} == {depth}
    rule.taps = ("one",)
    assert rule.depth_of(0) == depth


def test_the_last_layers_are_the_output_segment():
    net = resnet()
    rule = bound(AugLocal(depth=3), net, IMAGES)
    assert len(rule.taps) == 16 - 4
    assert rule.taps[-1] == "block3_1"
    assert bound(AugLocal(depth=99), net, IMAGES).taps == ("act",)


@pytest.mark.parametrize("shortcut", ["pad", "conv"])
def test_heads_halve_the_map_where_channels_double_as_in_the_paper(shortcut):
    net = resnet(shortcut=shortcut)
    rule = bound(AugLocal(taps=3), net, IMAGES)
    assert [rule.depth_of(i) for i in range(3)] == [2, 2, 2]
    blocks = [[m for m in head.body.layers if isinstance(m, Residual)] for head in rule.heads]
    firsts = [[(b.body[0].conv.in_channels, b.body[0].conv.out_channels) for b in each] for each in blocks]
    assert firsts == [[(4, 8), (8, 16)], [(8, 16), (16, 16)], [(16, 16), (16, 16)]]
    assert all(len(head.body.layers) == 2 for head in rule.heads), "no other layers were needed"
    assert [type(layer) for layer in rule.heads[0].read] == [type(layer) for layer in rule.heads[2].read]


def test_a_jump_over_a_level_has_means_over_places_first():
    net = resnet()
    rule = bound(AugLocal(depth=1), net, IMAGES)
    adapter, block = rule.heads[0].body.layers
    assert isinstance(adapter, Adapter)
    h = torch.randn(2, 4, 16, 16, dtype=torch.float64)
    expected = F.conv2d(F.avg_pool2d(h, 4), adapter.linear.weight[:, :, None, None])
    torch.testing.assert_close(adapter(h), expected)
    assert block.body[0].conv.in_channels == 16


def test_the_equation():
    net = resnet()
    rule = bound(AugLocal(taps=3), net, IMAGES)
    h = net[:6](IMAGES.x)  # conv, norm, act, and three blocks
    head = rule.heads[0]
    loss = F.cross_entropy(head.read[1](head.body(h).mean((2, 3))), IMAGES.y)
    torch.testing.assert_close(rule.gradients(net, TASK, IMAGES, Noise())["loss/block1_3"], loss.detach())


def test_copies_are_fresh():
    """They have the values of the net's weights in another order, and share nothing with the net."""
    net = resnet()
    net.block2_1.requires_grad_(False)
    net.block2_1.body[0].norm.running_mean.add_(1)
    before = {name: t.clone() for name, t in net.state_dict().items()}
    (copied,) = fresh([net.block2_1])
    for (name, p), original in zip(copied.named_parameters(), net.block2_1.parameters(), strict=True):
        assert p.requires_grad
        assert p.data_ptr() != original.data_ptr()
        assert torch.equal(p.flatten().sort().values, original.flatten().sort().values)
        assert torch.equal(p, original) == (p.dim() == 1), name
    assert bool((copied.body[0].norm.running_mean == 0).all())
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert not net.block2_1.body[0].conv.weight.requires_grad


@pytest.mark.parametrize(
    ("given", "wanted", "last"),
    [
        *(((6,), (4,), True), ((5, 6), (5, 4), True), ((8, 6), (4, 6), True), ((3, 8, 6), (5, 4, 3), False)),
        *(((3, 9, 9), (3, 4, 4), False), ((3, 8, 8), (7,), False), ((7,), (3, 2, 2), False)),
    ],
)
def test_features_are_brought_to_the_shape_that_a_layer_takes(given, wanted, last):
    assert Adapter(given, wanted, last=last)(torch.randn(2, *given)).shape == (2, *wanted)


def test_tokens_have_copied_blocks_and_the_last_norm():
    torch.manual_seed(0)
    net, task = NETS["transformer"]((8,), 11, each_step=True, width=16, depth=4, heads=2), Language(11)
    batch = Batch(torch.randint(11, (4, 8)), torch.randint(11, (4, 8)))
    rule = bound(AugLocal(), net, batch, task)
    assert rule.taps == ("block1",)
    kinds = [type(layer).__name__ for layer in (*rule.heads[0].body.layers, *rule.heads[0].read)]
    assert kinds == ["Block", "Block", "RMSNorm", "Linear"]
    assert rule.scores(0, torch.randn(4, 8, 16)).shape == (4, 8, 11)


class Masked(nn.Module):
    """Blocks that get a mask and a cache beside their input, as those of Hugging Face do."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attend, self.norm = nn.MultiheadAttention(8, 2, batch_first=True), nn.LayerNorm(8)

        def forward(self, h, mask, *, cache=None, scale=1.0):
            if cache is not None:
                cache.append(h)
            return self.norm(h + scale * self.attend(h, h, h, attn_mask=mask, need_weights=False)[0])

    class Cache(list):
        """Not a plain list."""

    def __init__(self):
        super().__init__()
        self.emb, self.out = nn.Embedding(11, 8), nn.Linear(8, 10)
        self.blocks = nn.ModuleList(Masked.Block() for _ in range(4))

    def forward(self, x):
        h, mask = self.emb(x), torch.full((x.shape[1],) * 2, -torch.inf).triu(1).to(self.out.weight)
        self.cache = self.Cache()
        for block in self.blocks:
            h = block(h, mask, cache=self.cache, scale=0.5)
        return self.out(h[:, -1])


def test_copies_of_a_block_get_its_mask_but_not_its_cache():
    torch.manual_seed(0)
    net, batch = Masked().double(), Batch(torch.randint(11, (4, 6)), torch.arange(4))
    rule = bound(AugLocal(depth=1, taps=["blocks.0"]), net, batch, Classify(10))
    copied = rule.heads[0].body.layers[0]
    seen = []
    copied.register_forward_pre_hook(lambda module, args, kwargs: seen.append((args[1:], kwargs)), with_kwargs=True)
    rule.gradients(net, Classify(10), batch, Noise())
    ((mask,), options) = seen[0]
    assert mask[0, 1] == -torch.inf
    assert options == {"cache": None, "scale": 0.5}
    assert len(net.cache) == 4, "only the net's own blocks added to it"
    assert all(p.grad.abs().sum() > 0 for p in copied.parameters())
    assert not rule._more, "nothing of the batch stays"
    assert not any(m._forward_pre_hooks for m in net.modules())


def test_stages_behind_another_net_are_whole_modules():
    """In a Sequential within a net, a stage begins behind the one before."""
    net = nn.ModuleDict({"features": nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3))})

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.features, self.classifier = net["features"], nn.Sequential(nn.Linear(6, 9), nn.Tanh())

        def forward(self, x):
            return self.classifier(self.features(x).mean((2, 3)))

    found = stages_of(Net(), ["features.1", "features.3", "classifier.1"], ["features.2"], torch.randn(2, 3, 9, 9))
    groups = [stage.modules for stage in found.stages]
    assert groups == [("features.0", "features.1"), ("features.2", "features.3"), ("classifier.0", "classifier.1")]
    assert [tuple(stage.takes) for stage in found.stages] == [(), (4, 7, 7), (6,)]
    assert [tuple(stage.gives) for stage in found.stages] == [(4, 7, 7), (6, 1, 1), (9,)]
    assert found.ends == [1]
    assert [tuple(shape) for shape in found.shapes] == [(4, 3, 3)]


def test_a_copy_that_needs_what_only_the_net_knows_is_refused():
    class Odd(nn.Linear):
        def forward(self, h, *, key):
            return super().forward(h) * key

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.out = nn.Linear(7, 6), Odd(6, 6), nn.Linear(6, 10)

        def forward(self, x):
            return self.out(self.second(self.first(x).tanh(), key=2.0).tanh())

    net, batch = Net().double(), Batch(torch.randn(4, 7).double(), torch.arange(4))
    with pytest.raises(UserError, match="copies of the stages behind tap 'first' do not run on its output"):
        bound(AugLocal(), net, batch)


def test_training_it_leaves_the_copied_stages_of_the_net_to_the_output():
    net = resnet()
    rule = bound(AugLocal(taps=1), net, IMAGES)
    rule.gradients(net, TASK, IMAGES, Noise())
    owned = [id(p) for unit in rule.units(net) for p in unit]
    assert len(owned) == len(set(owned)) == len([*net.parameters(), *rule.parameters()])
    assert len(gradients(net, rule)) == len(owned)


def test_heads_do_not_draw():
    """Then the net behind a head draws what it would draw without it."""
    torch.manual_seed(0)
    net = NETS["mlp"]((1, 8, 8), 10, hidden=[9, 8, 7], dropout=0.5)
    batch = Batch(torch.randn(5, 1, 8, 8), torch.arange(5))
    rule = bound(AugLocal(), net, batch)
    layers = rule.heads[0].body.layers
    assert [layer.p for layer in layers if isinstance(layer, nn.Dropout)] == [0.0, 0.0]
    assert net.drop2.p == 0.5
    state = torch.get_rng_state()
    rule.heads[0](torch.ones(5, 9))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("options", [{"depth": 0}, {"pyramid": 1.5}])
def test_wrong_options_are_refused(options):
    with pytest.raises(UserError, match=f"{next(iter(options))}: found"):
        AugLocal(**options)
