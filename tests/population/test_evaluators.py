"""All ways to run a population give the scores of its members, whatever is run side by side."""

from dataclasses import replace
from weakref import WeakSet

import pytest
import torch
from torch import nn

from bpfree import Noise, UserError
from bpfree.nets import NETS
from bpfree.population import Gaussian, Generation, InPlace, Loop, LowRank, LowRankEvaluator, Member, Vmap, choose
from bpfree.population.behaviour import Behaviour, frozen_parts
from bpfree.population.first_layer import find_first_layer
from bpfree.population.passes import parts_run_once
from bpfree.rules import Eggroll
from tests.helpers import TASK


class Tokens(nn.Module):
    """A layer on the last dimension of [B, 16, 4], used twice."""

    def __init__(self):
        super().__init__()
        self.inner, self.again, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(64, 10)

    def forward(self, x):
        h = self.inner(x.flatten(1).unflatten(1, (16, 4)))
        return self.last(self.again(torch.tanh(self.again(h))).flatten(1))


NET = {
    "mlp": lambda: NETS["mlp"]((1, 8, 8), 10, hidden=[12, 7]),
    "conv": lambda: NETS["conv"]((1, 8, 8), 10, channels=[3, 4], hidden=9),
    "norm": lambda: NETS["conv"]((1, 8, 8), 10, channels=[3], hidden=5, batch_norm=True, dropout=0.5),
    "norm by batch": lambda: nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, track_running_stats=False), nn.ReLU(), nn.Flatten(), nn.Linear(108, 10)
    ),
    "norm first": lambda: nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 10)),
    "strided": lambda: nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1, bias=False), nn.Flatten(), nn.Linear(64, 10, bias=False)),
    "tokens": Tokens,
    "signs": lambda: NETS["mlp"]((1, 8, 8), 10, hidden=[12], activation="sign"),
    "spikes": lambda: NETS["spiking_mlp"]((1, 8, 8), 10, hidden=[12, 8]),
}


QUIET = Behaviour(draws=False)


def make(kind, batch, dtype=torch.float64):
    torch.manual_seed(0)
    net = NET[kind]().to(batch.x.device, dtype).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return net


def generation_of(net, perturbation, population=12, mirrored=True, sigma=0.1, step=0):
    parameters = [p for p in net.parameters() if p.requires_grad]
    return Generation(parameters, Member.all(population, mirrored), perturbation, Noise(3, step), sigma)


def judge_of(batch):
    return lambda out: TASK.loss(out, batch)


def written_out(net, batch, generation):
    """Scores with the weights of each member made from its noise, one by one."""
    names = [name for name, p in net.named_parameters() if p.requires_grad]
    scores = []
    for key, sign in generation.members:
        block, place = divmod(key, generation.perturbation.together)
        noise = [sample.dense()[place] for sample in generation.draw(block)]
        moved = [
            p + sign * generation.scale_of(i) * e
            for i, (p, e) in enumerate(zip(generation.parameters, noise, strict=True))
        ]
        out = torch.func.functional_call(net, dict(zip(names, moved, strict=True)), (batch.x,))
        scores.append(TASK.loss(out, batch))
    return torch.stack(scores).detach()


@pytest.mark.parametrize("mirrored", [True, False])
@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("kind", NET)
@torch.no_grad()
def test_low_rank_members_are_those_of_weights_written_out(kind, rank, mirrored, batch):
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        if kind in ("signs", "spikes") and dtype == torch.float32:
            continue  # rounding turns a sign
        net = make(kind, batch, dtype)
        this = replace_x(batch, dtype)
        generation = generation_of(net, LowRank(rank), mirrored=mirrored)
        expected = written_out(net, this, generation)
        for evaluator in (Loop(), LowRankEvaluator(4), Vmap(4), InPlace()):
            scores, first = evaluator(net, this.x, judge_of(this), generation)
            torch.testing.assert_close(scores, expected, rtol=tolerance, atol=tolerance)
            torch.testing.assert_close(TASK.loss(first, this), expected[0], rtol=tolerance, atol=tolerance)


FIRST = {
    "mlp": "fc1",
    "conv": "conv1",
    "norm": "conv1",
    "norm by batch": "0",
    "strided": "0",
    "signs": "fc1",
    "spikes": "layers.0",
}


@pytest.mark.parametrize("kind", NET)
@torch.no_grad()
def test_the_products_of_the_first_layer_are_shared(kind, batch):
    net = make(kind, batch)
    generation = generation_of(net, LowRank(1), population=80)  # more than a block of keys
    first = find_first_layer(net, batch.x, generation, 1e9)
    assert first is (net.get_submodule(FIRST[kind]) if kind in FIRST else None)
    expected = written_out(net, batch, generation)
    for slices in (None,) if kind == "norm by batch" else (None, 5):
        scores, out = Loop(slices, first)(net, batch.x, judge_of(batch), generation)
        torch.testing.assert_close(scores, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(TASK.loss(out, batch), expected[0], rtol=1e-12, atol=1e-12)


class Reads(nn.Module):
    """Uses a weight before the layer that owns it is called, or before a layer of others."""

    def __init__(self, read):
        super().__init__()
        self.read, self.fc, self.out = read, nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x):
        h = x.flatten(1)
        if self.read == "earlier":
            h = h @ self.out.weight.T @ self.out.weight
        h = self.fc(h)
        return self.out(self.fc(h) if self.read == "twice" else h)


@pytest.mark.parametrize("read", ["once", "earlier", "twice"])
def test_a_first_layer_is_shared_only_where_all_members_give_it_the_same(read, batch):
    net = Reads(read).to(batch.x)
    generation = generation_of(net, LowRank(1))
    assert find_first_layer(net, batch.x, generation, 1e9) is (net.fc if read == "once" else None)
    assert find_first_layer(net, batch.x, generation, 1e2) is None  # no memory for it
    assert find_first_layer(net, batch.x, generation_of(net, LowRank(9)), 1e9) is None  # saves nothing
    assert find_first_layer(Tied().to(batch.x), batch.x, generation_of(Tied(), LowRank(1)), 1e9) is None


@pytest.mark.parametrize("kind", ["mlp", "conv", "norm by batch"])
@torch.no_grad()
def test_evaluators_in_a_row_agree_under_autocast(kind, batch):
    """Autocast keeps casts of weights within its context: what one evaluator leaves there must not be a member's."""
    net = make(kind, batch, torch.float32)
    this = replace_x(batch, torch.float32)
    generation = generation_of(net, LowRank(1))
    expected = written_out(net, this, generation)
    first = find_first_layer(net, this.x, generation, 1e9)
    with torch.autocast(this.x.device.type, torch.bfloat16):
        for evaluator in (Loop(), LowRankEvaluator(4), InPlace(), LowRankEvaluator(4), Loop(first=first), Vmap(4)):
            scores, _ = evaluator(net, this.x, judge_of(this), generation)
            torch.testing.assert_close(scores, expected, rtol=0.02, atol=0.02)


def test_what_is_shared_follows_what_is_trained(batch):
    """A first layer that is unfrozen between two steps gives the next one something else for each member."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.Tanh(), nn.Linear(20, 10)).to(batch.x)
    steps = []
    for evaluator in ("loop", "in_place"):
        rule = Eggroll(evaluator=evaluator, population=4)
        for frozen in (True, False):
            net[1].requires_grad_(not frozen)
            net.zero_grad()
            rule.gradients(net, TASK, batch, Noise())
        steps.append([p.grad.clone() for p in net.parameters()])
    for a, b in zip(*steps, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def replace_x(batch, dtype):
    return type(batch)(batch.x.to(dtype), batch.y)


@pytest.mark.parametrize("kind", ["mlp", "conv"])
@torch.no_grad()
def test_gaussian_members_and_widths_of_their_own(kind, batch):
    net = make(kind, batch)
    generation = generation_of(net, Gaussian())
    widths = [torch.rand_like(p) for p in generation.parameters]
    for this in (generation, replace(generation, scale=widths)):
        expected = written_out(net, batch, this)
        for evaluator in (Loop(), Vmap(5), InPlace()):
            scores, _ = evaluator(net, batch.x, judge_of(batch), this)
            torch.testing.assert_close(scores, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 7, 64, 1000])
@torch.no_grad()
def test_results_do_not_depend_on_how_many_run_side_by_side(size, batch):
    """80 members are more than a block of keys, and 7 divides nothing."""
    net = make("mlp", batch)
    generation = generation_of(net, LowRank(2), population=160)
    expected, _ = Loop()(net, batch.x, judge_of(batch), generation)
    for evaluator in (LowRankEvaluator(size), Vmap(size), Loop(size), InPlace(size)):
        scores, _ = evaluator(net, batch.x, judge_of(batch), generation)
        torch.testing.assert_close(scores, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("perturbation", [Gaussian(), LowRank(1)])
def test_noise_is_the_same_to_the_bit_however_it_is_asked_for(perturbation, batch):
    net = make("conv", batch)
    generation = generation_of(net, perturbation, population=80)
    again = [sample.dense() for sample in generation.draw(0)]
    assert all(torch.equal(a.dense(), b) for a, b in zip(generation.draw(0), again, strict=True))
    some = replace(generation, members=generation.members[6:9])
    (chunk,) = some.chunks(8)
    (every,) = generation.chunks(80)
    for few, all_ in zip(chunk.samples, every.samples, strict=True):
        wanted = [every.places[i] for i in (6, 7, 8)]
        assert torch.equal(few.dense()[chunk.places], all_.dense()[wanted])
    later = generation_of(net, perturbation, population=80, step=1)
    assert not torch.equal(next(later.draw(0)).dense(), again[0])


@pytest.mark.parametrize("perturbation", [Gaussian(), LowRank(1), LowRank(3)])
def test_what_is_combined_is_the_weighted_noise(perturbation, batch):
    net = make("conv", batch)
    generation = generation_of(net, perturbation, population=70, mirrored=True)
    weights = torch.randn(70, dtype=torch.float64, device=batch.x.device)
    (every,) = generation.chunks(70)
    signs = torch.tensor(every.signs, device=weights.device)
    for combined, sample in zip(generation.combine(weights), every.samples, strict=True):
        expected = torch.tensordot(weights * signs, sample.dense()[every.places], 1)
        torch.testing.assert_close(combined, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("perturbation", [Gaussian(), LowRank(1), LowRank(4)])
def test_every_element_has_variance_one_and_nothing_in_common_with_others(perturbation, batch):
    net = nn.Linear(6, 5).double().to(batch.x.device)
    generation = generation_of(net, perturbation, population=60_000, mirrored=False)
    (every,) = generation.chunks(60_000)
    noise = every.samples[0].dense().flatten(1)
    covariance = noise.T @ noise / len(noise)
    torch.testing.assert_close(covariance, torch.eye(30).to(covariance), rtol=0, atol=0.05)


@torch.no_grad()
def test_parameters_come_out_as_they_went_in_even_of_a_break(batch):
    net = make("conv", batch)
    before = [p.clone() for p in net.parameters()]
    for evaluator in (Loop(), Loop(first=net[0]), LowRankEvaluator(4), Vmap(4), InPlace()):
        calls = []

        def judge(out, calls=calls):
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return out.sum()

        generation = generation_of(net, LowRank(1), population=64)
        with pytest.raises(KeyboardInterrupt):
            evaluator(net, batch.x, judge, generation)
        for p, b in zip(net.parameters(), before, strict=True):
            if isinstance(evaluator, InPlace):
                torch.testing.assert_close(p, b, rtol=1e-14, atol=1e-16)
            else:
                assert torch.equal(p, b)
        assert not any("forward" in vars(module) for module in net.modules())


class Counting(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.calls = inner, 0

    def forward(self, x):
        self.calls += 1
        return self.inner(x)


@pytest.mark.parametrize("inplace", [False, True])
@torch.no_grad()
def test_a_frozen_beginning_runs_once(inplace, batch):
    torch.manual_seed(0)
    body = Counting(nn.Sequential(nn.Flatten(), nn.Linear(64, 20)))
    net = nn.Sequential(body, nn.ReLU(inplace), nn.Linear(20, 9), nn.ReLU(inplace), nn.Linear(9, 10)).to(batch.x)
    for p in body.parameters():
        p.requires_grad_(False)
    generation = generation_of(net, LowRank(1), population=8)
    expected = written_out(net, batch, generation)
    slices = -(-len(batch.x) // 5)
    known = Behaviour(frozen=tuple(frozen_parts(net)))
    ways = (
        *((Loop(None, None, known), 1), (Loop(5, None, known), slices), (Loop(5, net[2], known), slices)),
        *((InPlace(5, known), slices), (LowRankEvaluator(4, known), 1), (Loop(), 8)),
    )
    for evaluator, calls in ways:
        body.calls = 0
        scores, _ = evaluator(net, batch.x, judge_of(batch), generation)
        torch.testing.assert_close(scores, expected, rtol=1e-12, atol=1e-12)
        assert body.calls == calls
    x = batch.x.clone()
    with parts_run_once(frozen_parts(net), [x]):
        net(x)
        x += 1  # of another content now, so nothing that is remembered holds
        torch.testing.assert_close(net(x), type(net).forward(net, x.clone()))


def test_an_adapter_is_trained_alone(batch):
    net = make("mlp", batch)
    for name, p in net.named_parameters():
        p.requires_grad_(name.startswith("fc2"))
    generation = generation_of(net, LowRank(1))
    expected = written_out(net, batch, generation)
    with torch.no_grad():
        scores, _ = LowRankEvaluator(8)(net, batch.x, judge_of(batch), generation)
    torch.testing.assert_close(scores, expected, rtol=1e-12, atol=1e-12)
    assert [tuple(step.shape) for step in generation.combine(scores)] == [(7, 12), (7,)]


class Mixing(nn.Module):
    """Its samples see each other."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        h = self.fc(x.flatten(1))
        return h - h.mean(0)


@pytest.mark.parametrize("asked", ["loop", "in_place"])
@torch.no_grad()
def test_a_minibatch_goes_through_in_slices_that_fit_the_cache(asked, batch):
    """Unless its samples see each other; a cap on memory goes below what is fast."""

    def judge(out):
        return out.square().mean()

    large = nn.Sequential(nn.Conv2d(1, 1100, 3, padding=1), nn.Flatten(), nn.Linear(1100 * 64, 10)).to(batch.x)
    x = batch.x.repeat(1 + 80 // len(batch.x), 1, 1, 1)[:80].float()
    generation = generation_of(large.float(), Gaussian(), population=4)
    for memory, samples in ((None, 32 if x.device.type == "cpu" else None), (1.0, 1), (1000.0, None)):
        _, evaluator = choose(asked, large, x, judge, generation, memory, QUIET)
        assert evaluator.samples == samples
    for net, samples in ((Mixing(), None), (NETS["mlp"]((1, 8, 8), 10), 1)):
        net = net.to(batch.x)
        _, evaluator = choose(asked, net, batch.x, judge, generation_of(net, Gaussian()), 1e-5, QUIET)
        assert evaluator.samples == samples


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 64)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(x.flatten(1)))[:, :10]


class Decoding(nn.Module):
    """Its first layer's weight decodes, too, by a product that no module makes."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 20)

    def forward(self, x):
        return (self.fc(input=x.flatten(1)) if self.fc.bias is None else self.fc(x.flatten(1))) @ self.fc.weight[:, :10]


@torch.no_grad()
def test_a_first_layer_whose_weight_is_used_again_is_not_shared(batch):
    net = Decoding().to(batch.x)
    generation = generation_of(net, LowRank(1), sigma=0.01)
    assert find_first_layer(net, batch.x, generation, 1e9) is net.fc  # as far as calls tell
    _, evaluator = choose("loop", net, batch.x, judge_of(batch), generation, None, QUIET)
    assert evaluator.first is None
    with pytest.raises(UserError, match="other outputs when members are run side by side"):
        choose("lowrank", net, batch.x, judge_of(batch), generation, None, QUIET)
    net.fc.bias = None  # it calls by keyword now
    assert find_first_layer(net, batch.x, generation_of(net, LowRank(1)), 1e9) is None


@pytest.mark.parametrize(
    ("net", "perturbation", "message"),
    [
        (lambda: NETS["mlp"]((1, 8, 8), 10), Gaussian(), "lowrank, but the noise does not have a low rank"),
        (Mixing, LowRank(1), "other outputs when members are run side by side"),
        (Tied, LowRank(1), "layers share parameters"),
        (lambda: nn.Sequential(nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, 10)), LowRank(1), "1 is a LayerNorm"),
        (lambda: nn.Sequential(nn.Conv2d(1, 2, 3, padding_mode="circular"), nn.Flatten()), LowRank(1), "padded with"),
    ],
)
@torch.no_grad()
def test_nets_that_members_cannot_share_are_left_to_the_loop(net, perturbation, message, batch):
    net = net().to(batch.x).eval()
    generation = generation_of(net, perturbation)

    def judge(out):
        return out.square().mean()

    with pytest.raises(UserError, match=message):
        choose("lowrank", net, batch.x, judge, generation, None, QUIET)
    name, evaluator = choose("auto", net, batch.x, judge, generation, None, QUIET)
    assert name in ("loop", "vmap")
    torch.testing.assert_close(
        evaluator(net, batch.x, judge, generation)[0], Loop()(net, batch.x, judge, generation)[0]
    )


@pytest.mark.parametrize("way", [Loop, InPlace])
@torch.no_grad()
def test_scores_of_many_members_are_few_tensors(way, batch):
    """A GPU's allocator gives 512 bytes to each, however small."""
    net = make("mlp", batch)
    alive, most, told = WeakSet(), 0, []

    def judge(out):
        nonlocal most
        score = TASK.loss(out, batch)
        alive.add(score)
        most = max(most, len(alive))
        told.append(float(score))
        return score

    scores, _ = way()(net, batch.x, judge, generation_of(net, Gaussian(), 300))
    assert scores.tolist() == told
    assert most <= 65
