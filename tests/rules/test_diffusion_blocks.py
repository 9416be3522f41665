"""DiffusionBlocks: blocks that denoise by themselves, weights of single samples, and what the context tells."""

import pytest
import torch
from torch.nn import functional as F

from bpfree import Noise, Trainer, UserError
from bpfree.diffusion.conditioned import Level, run
from bpfree.nets import NETS
from bpfree.nets.blocks import Block, BlockForm
from bpfree.rules import DiffusionBlocks
from bpfree.tasks import Classify, Language
from bpfree.types import Batch
from tests.helpers import IN_SHAPE, TASK, VIT, bound, gradients, jolt, same, zero_grad

V, T = 7, 6


def vit(depth=3, **options):
    torch.manual_seed(0)
    return NETS["vit"](IN_SHAPE, 10, **{**VIT, "depth": depth, **options}).double()


def decoder():
    torch.manual_seed(0)
    return NETS["transformer"]((T,), V, each_step=True, width=16, depth=3, heads=2).double()


@pytest.fixture
def texts():
    torch.manual_seed(1)
    return Batch(torch.randint(V, (4, T)), torch.randint(V, (4, T)))


@pytest.fixture
def ready(batch):
    """A rule on its net. The gates are open, so that all layers have a gradient."""
    net = vit()
    rule = bound(DiffusionBlocks(), net, batch)
    jolt(rule.levels.parameters())
    return net, rule


def test_the_weight_is_one_number_for_each_sample(batch):
    """Losses [B] times weights [B, 1] would be the mean loss times the mean weight."""
    rule = DiffusionBlocks()
    nats, sigma = torch.tensor([1.0, 2.0]), torch.tensor([0.1, 10.0])
    weights = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
    torch.testing.assert_close(rule.weighted(nats, sigma), (weights[0] * 1 + weights[1] * 2) / 2)
    assert float(DiffusionBlocks(weighting="equal").weighted(nats, sigma)) == 1.5
    net = vit()
    bound(rule, net, batch)
    seen = []
    rule.weighted = lambda nats, sigma: seen.append((nats.shape, sigma.shape)) or nats.mean()
    rule.gradients(net, TASK, batch, Noise(0, 0))
    assert seen == [((len(batch.y),), (len(batch.y),))] * 3


def test_a_block_reaches_its_own_parameters_and_the_embeddings_alone(batch, ready):
    net, rule = ready
    rule.order = "random"
    owner = {id(p): number for number, unit in enumerate(rule.units(net), start=1) for p in unit}
    assert len(owner) == len([*net.parameters(), *rule.parameters()])
    for step in range(12):
        zero_grad(net, rule)
        (name,) = (name for name in rule.gradients(net, TASK, batch, Noise(0, step)) if name.startswith("loss/"))
        reached = {owner[id(p)] for p in [*net.parameters(), *rule.parameters()] if p.grad is not None}
        assert reached == {int(name.removeprefix("loss/block")), 4}, "4: the embeddings of classes"


def test_all_blocks_are_the_mean_of_single_ones(batch, ready):
    """With T times its loss, a block that is drawn stands for the sum over blocks."""
    net, rule = ready
    rule.weighting = "equal"  # weights of 10^5 would need another tolerance
    zero_grad(net, rule)
    rule.gradients(net, TASK, batch, Noise(0, 0))
    whole = gradients(net, rule)
    zero_grad(net, rule)
    for turns in ([1], [2], [3]):
        rule._turns = lambda noise, turns=turns: turns
        rule.gradients(net, TASK, batch, Noise(0, 0))
    for name, value in gradients(net, rule).items():
        torch.testing.assert_close(value / 3, whole[name], rtol=1e-9, atol=1e-10)


def test_only_one_block_is_in_memory(batch):
    """What autograd keeps at the same time does not grow with the number of blocks."""

    def most_kept(depth):
        net = vit(depth)
        rule = bound(DiffusionBlocks(blocks=depth), net, batch)
        alive, most = {}, [0]

        def pack(tensor):
            handle = Kept(tensor.detach())
            alive[id(handle)] = tensor.numel()
            most[0] = max(most[0], sum(alive.values()))
            return handle

        class Kept:
            def __init__(self, tensor):
                self.tensor = tensor

            def __del__(self):
                alive.pop(id(self), None)

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda handle: handle.tensor):
            rule.gradients(net, TASK, batch, Noise(0, 0))
        return most[0]

    assert most_kept(6) == most_kept(2)


def test_noise_stands_beside_clean_tokens(texts):
    """Position t depends on the tokens up to t and on its own noisy embedding, and on nothing else."""
    net = decoder()
    rule = bound(DiffusionBlocks(experimental=True), net, texts, Language(V))
    jolt(rule.levels.parameters())
    host = rule._host(net)
    z = torch.randn(1, T, 16, dtype=torch.float64, requires_grad=True)
    tokens = torch.randn(1, T, 16, dtype=torch.float64, requires_grad=True)
    for block in (1, 2, 3):
        scores = rule._scores(host, block, tokens, z, torch.ones(1, dtype=torch.float64))
        for t in range(T):
            by_z, by_token = torch.autograd.grad(scores[0, t].sum(), (z, tokens), retain_graph=True)
            assert by_z[0].abs().sum(-1).nonzero().flatten().tolist() == [t]
            assert by_token[0].abs().sum(-1).nonzero().flatten().tolist() == list(range(t + 1))


def test_closed_gates_change_nothing():
    torch.manual_seed(0)
    layers, level = [Block(BlockForm(16, 2, causal=False)) for _ in range(2)], Level(16, 2, 8)
    changes, end = level(torch.randn(3))
    h = torch.randn(3, 5, 16)
    assert torch.equal(run(layers, changes, h, None), h)
    assert not bool(end.any())


def test_inference_is_an_euler_walk(batch, ready):
    net, rule = ready
    net.eval()
    with torch.no_grad():
        host, levels = rule._host(net), rule.noise.spaced(3)
        e, tokens = F.normalize(rule.classes.weight, dim=1), net.patches(batch.x)
        z = torch.zeros(len(batch.y), 16, dtype=torch.float64)
        for block, (level, then) in enumerate(zip(levels, [*levels[1:], None], strict=True), start=1):
            scores = rule._scores(host, block, tokens, z, torch.full((len(z),), level, dtype=torch.float64))
            if then is not None:
                z = z + (then - level) * (z - scores.softmax(1) @ e) / level
        torch.testing.assert_close(rule.predict(net, batch.x), scores)
        assert not same({"": rule.extra_outputs(net, batch.x)["block1"]}, {"": scores})
        again = bound(DiffusionBlocks(start="noise"), net, batch)
        assert float(again._first.std()) == pytest.approx(80, rel=0.5)


def test_the_context_is_read(digits_data):
    """Without the image a block could only read the label from z: then another image would do as well."""
    x, y = digits_data.train.x.float() / 8 - 1, digits_data.train.y
    torch.manual_seed(0)
    net = NETS["vit"](IN_SHAPE, 10, width=32, heads=2, depth=2, patch=4)
    rule = DiffusionBlocks(blocks=2, noise={"mean": 0.5}, weighting="equal")
    trainer = Trainer(net, rule, TASK, {"name": "adamw", "lr": 1e-2})
    for step in range(100):
        some = slice(step * 64 % 1280, step * 64 % 1280 + 64)
        trainer.step(Batch(x[some], y[some]))
    net.eval()
    with torch.no_grad():
        matched, scrambled = (
            float(TASK.loss(rule.extra_outputs(net, images)["block1"], Batch(images, y))) for images in (x, x.flip(0))
        )
    assert matched < 1 < scrambled


def test_ignored_tokens_have_no_gradient(texts):
    task, net = Language(V), decoder()
    rule = bound(DiffusionBlocks(experimental=True, blocks=2), net, texts, task)
    jolt(rule.levels.parameters())
    ignored = Batch(texts.x, texts.y.clone())
    ignored.y[1] = -100
    scalars = rule.gradients(net, task, ignored, Noise(0, 0))
    assert all(bool(value.isfinite()) for value in scalars.values())
    before = gradients(net, rule)
    zero_grad(net, rule)
    changed = Batch(ignored.x.clone(), ignored.y)
    changed.x[1] = (changed.x[1] + 1) % V
    rule.gradients(net, task, changed, Noise(0, 0))
    for name, value in gradients(net, rule).items():
        torch.testing.assert_close(value, before[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("net", "options", "message"),
    [
        (lambda: vit(pool="mean"), {}, "denoises embeddings of labels .* Use net.name=vit net.pool=class"),
        (vit, {"blocks": 4}, "rule.blocks: found 4, allowed: at most the net's 3 layers"),
        (lambda: NETS["vit"](IN_SHAPE, 7, **VIT).double(), {}, "net: it has 7 outputs, allowed: 10"),
    ],
)
def test_what_does_not_fit_is_refused(batch, net, options, message):
    with pytest.raises(UserError, match=message):
        Trainer(net(), DiffusionBlocks(**options), Classify(10), "sgd").step(batch)


def test_language_is_an_experiment(texts):
    with pytest.raises(UserError, match=r"Use rule.experimental=true"):
        Trainer(decoder(), "diffusion_blocks", Language(V), "sgd").step(texts)
    with pytest.raises(UserError, match="net.name=transformer net.each_step=true"):
        Trainer(vit(), DiffusionBlocks(experimental=True), Language(V), "sgd").step(texts)


@pytest.mark.parametrize(("name", "value"), [("blocks", 0), ("steps", 0)])
def test_numbers_below_one_are_refused(name, value):
    with pytest.raises(UserError, match=f"{name}: found 0, allowed: at least 1"):
        DiffusionBlocks(**{name: value})
