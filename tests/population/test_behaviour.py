"""Nets with state, noise, frozen parts, parametrizations, several inputs: every evaluator gives the plain loop."""

import random
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bpfree
from bpfree import Batch, Noise, UserError
from bpfree.population import Generation
from bpfree.population.behaviour import State, choose_frozen, frozen_parts, study
from bpfree.population.evaluators import Loop
from bpfree.population.statistics import members
from bpfree.rules import ES, RULES, SPSA, Eggroll, ForwardGradient
from tests.helpers import TASK, zero_grad
from tests.population.nets import NETS, Adapter, Counter, Kept, flat, make, step_of


@pytest.mark.parametrize("kind", NETS)
def test_every_evaluator_gives_the_plain_loop_or_refuses(kind, batch):
    """Over two steps, in which layers learn state; nothing but that state is changed by a step."""
    net = make(kind, batch)
    expected = None
    refused = []
    for evaluator in ("loop", "in_place", "vmap", "lowrank", "auto"):
        this = make(kind, batch)
        rule = Eggroll(evaluator=evaluator, population=6, sigma=0.05, shaping="raw")
        try:
            steps = [step_of(rule, this, batch, step) for step in (0, 1)]
        except UserError as error:
            refused.append((evaluator, str(error)))
            continue
        state = {name.rpartition("_orig_mod.")[2]: v for name, v in this.state_dict().items()}
        if expected is None:
            expected, learned = steps, state
        for found, wanted in zip(steps, expected, strict=True):
            for name, value in wanted.items():
                torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-10)
        for name, value in learned.items():
            torch.testing.assert_close(state[name], value, rtol=1e-10, atol=1e-12)
        assert not any("forward" in vars(module) for module in this.modules() if "_orig_mod" not in module._modules)
        deepcopy(this)  # nothing that vmap leaves behind
    assert all(name in ("vmap", "lowrank") and "Allowed: auto, loop" in message for name, message in refused)
    if kind not in ("compiled", "wrapped"):
        assert plain(make(kind, batch), batch, net) == pytest.approx(flat(expected[0]).tolist(), rel=1e-7, abs=1e-9)


def plain(net, batch, like):
    """A step by hand: state is learned, then each member is a copy of the net with its weights written out."""
    rule = Eggroll(population=6, sigma=0.05, shaping="raw")
    noise = Noise(0, 0)
    with torch.no_grad(), noise.fold("state").global_rng(batch.x.device):
        net.train()
        for module in net.modules():
            if isinstance(module, nn.Dropout) or not any(p.requires_grad for p in [*module.parameters(), _ANY]):
                module.eval()
        net(batch.x)
    net.eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.train()
    trained = [p for p in net.parameters() if p.requires_grad]
    generation = rule.generation(trained, noise)
    (chunk,) = generation.chunks(6)
    losses = []
    base = [p.detach().clone() for p in trained]
    for place, sign in zip(chunk.places, chunk.signs, strict=True):
        copy = deepcopy(net)
        own = [p for p in copy.parameters() if p.requires_grad]
        if isinstance(net, Adapter):
            copy.reader.others = [copy.fc]
        for p, b, sample in zip(own, base, chunk.samples, strict=True):
            p.data.copy_(b + sign * 0.05 * sample.dense()[place])
        with torch.no_grad(), noise.fold("forward").global_rng(batch.x.device):
            losses.append(TASK.loss(copy(batch.x), batch))
    combined = generation.combine(torch.stack(losses) / (6 * 0.05))
    return torch.cat([g.flatten() for g in combined]).tolist()


_ANY = nn.Parameter(torch.zeros(()))


@pytest.mark.parametrize("evaluator", ["loop", "in_place", "vmap", "auto"])
@pytest.mark.parametrize("kind", ["input noise", "hidden noise", "functional dropout", "frozen noise"])
def test_all_members_of_a_step_see_the_same_noise(kind, evaluator, batch):
    scores = []

    def score(out, y):
        scores.append(float(F.cross_entropy(out, y)) if not torch._C._functorch.is_batchedtensor(out) else 0.0)
        return F.cross_entropy(out, y)

    net = make(kind, batch)
    if batch.device.type == "cuda" and (kind, evaluator) == ("functional dropout", "vmap"):
        pytest.skip("torch draws other masks for members side by side on CUDA, so this evaluator refuses the net there")
    rule = ES(evaluator=evaluator, sigma=1e-13, population=8, objective=score, maximize=False)
    for step in range(2):
        step_of(rule, net, batch, step)
        if evaluator != "vmap":
            last = scores[-8:] if rule.metadata()["evaluator"] != "vmap" else [0.0]
            assert max(last) - min(last) < 1e-9
    if rule.metadata()["evaluator"] != "vmap":
        assert abs(scores[-1] - scores[-9]) > 1e-6  # another step has other noise


def test_noise_that_begins_late_is_noticed(batch):
    net = make("hidden noise", batch)
    net.kind = "none"
    rule = Eggroll(population=8, evaluator="auto")
    step_of(rule, net, batch)
    net.kind = "hidden"
    fresh = Eggroll(population=8, evaluator="loop")
    a, b = step_of(rule, net, batch, 1), step_of(fresh, net, batch, 1)
    torch.testing.assert_close(flat(a), flat(b), rtol=1e-9, atol=1e-10)


def test_low_rank_members_side_by_side_are_refused_where_they_would_see_other_noise(batch):
    with pytest.raises(UserError, match="evaluator: found lowrank, but the net draws random numbers"):
        step_of(Eggroll(evaluator="lowrank"), make("hidden noise", batch), batch)


@pytest.mark.parametrize("source", [random.random, iter(range(10**6)).__next__])
def test_a_net_with_hidden_state_is_refused(source, batch):
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(64, 10)

        def forward(self, x):
            return self.fc(x.flatten(1)) + source()

    with pytest.raises(UserError, match="the same input gave two outputs"):
        step_of(ES(), Hidden().to(batch.x), batch)


@pytest.mark.parametrize("kind", [k for k in NETS if "weight norm" not in k and "spectral" not in k])
def test_forward_gradients_are_the_slopes_times_their_directions(kind, batch):
    """Every direction begins with the same state and noise."""
    net, reference = make(kind, batch), make(kind, batch)
    rule = ForwardGradient(directions=3)
    found = step_of(rule, net, batch)
    with Noise(0, 0).fold("dropout").global_rng(batch.x.device):
        TASK.loss(reference(batch.x), batch).backward()
    trained = [p for p in reference.parameters() if p.requires_grad]
    generation = Generation(trained, rule.members, rule.perturbation, Noise(0, 0))
    expected = 0.0
    for member in rule.members:
        direction = torch.cat([sample.dense()[0].flatten() for sample in generation.draw(member.key)])
        expected = expected + (torch.cat([p.grad.flatten() for p in trained]) @ direction) * direction / 3
    torch.testing.assert_close(flat(found), expected, rtol=1e-9, atol=1e-10)
    for a, b in zip(net.buffers(), reference.buffers(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", ["spectral norm", "old weight norm"])
def test_forward_gradients_name_what_torch_cannot_differentiate_forwards(kind, batch):
    with pytest.raises(UserError, match="no forward-mode derivative of one of its operations"):
        step_of(ForwardGradient(), make(kind, batch), batch)


# Frozen parts


@pytest.mark.parametrize(
    ("kind", "kept"),
    [("spiking", ["fc1"]), ("frozen noise", ["2.1"]), ("adapter", ["flat", "body", "tail"]), ("counter", [])],
)
def test_only_parts_that_change_nothing_are_kept(kind, kept, batch):
    net = make(kind, batch)
    behaviour = study(net, batch.x, Noise())
    trained = [p for p in net.parameters() if p.requires_grad]
    generation = Eggroll(population=4, sigma=0.1).generation(trained, Noise())
    with members(net), torch.no_grad():
        found = choose_frozen(net, behaviour, lambda b: Loop(None, None, b)(net, batch.x, Tensor_clone, generation)[0])
    names = {id(module): name for name, module in net.named_modules()}
    assert [names[id(part)] for part in found.frozen] == kept
    assert (frozen_parts(net) == []) == (kind == "counter")


def Tensor_clone(out):  # noqa: N802
    return out.clone()


def test_a_spiking_net_behind_frozen_layers_is_trained_as_it_is(batch):
    """What `fit` does with `freeze`: the net and a copy of it that nothing can keep take the same step."""
    net = make("spiking", batch)
    free = make("spiking", batch)
    free.fc1.requires_grad_(True)
    scores = []
    for this in (net, free):
        own = [p for name, p in this.named_parameters() if name.startswith("fc2")]
        for p in this.fc1.parameters():
            p.requires_grad_(this is free)
        rule = ES(population=4, evaluator="loop", sigma=0.1)
        generation = rule.generation(own, Noise(0, 0))
        behaviour = study(this, batch.x, Noise())
        with members(this), torch.no_grad():
            chosen = choose_frozen(
                this, behaviour, lambda b, t=this, g=generation: Loop(None, None, b)(t, batch.x, Tensor_clone, g)[0]
            )
            scores.append(Loop(None, None, chosen)(this, batch.x, lambda out: TASK.loss(out, batch), generation)[0])
    torch.testing.assert_close(*scores, rtol=1e-12, atol=1e-12)


# State that is learned in training mode


def sizes(net):
    """The largest singular value of the first layer's weight, as it is used."""
    net.eval()
    with torch.no_grad():
        net(torch.zeros(2, 64))
    return float(torch.linalg.svdvals(next(m for m in net.modules() if isinstance(m, nn.Linear)).weight.detach())[0])


@pytest.mark.parametrize("kind", ["spectral norm", "old spectral norm"])
def test_spectral_norm_is_learned(kind):
    torch.manual_seed(0)
    net = NETS[kind]()
    x, y = torch.randn(200, 64), torch.randint(10, (200,))
    bpfree.fit(net, (x, y), "es", epochs=10, optimizer={"name": "adam", "lr": 0.05}, batch_size=50, device="cpu")
    assert sizes(net) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("evaluator", ["loop", "in_place", "auto"])
@pytest.mark.parametrize("name", ["size", "running_mean", "_u"])
def test_state_is_learned_once_a_step_from_the_unperturbed_net(name, evaluator, batch):
    kind = {"size": "average", "running_mean": "batch norm", "_u": "spectral norm"}[name]
    net, reference = make(kind, batch), make(kind, batch)
    rule = ES(evaluator=evaluator, population=4, sigma=0.5)
    for module in reference.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for step in range(3):
        step_of(rule, net, batch, step)
        with torch.no_grad():
            reference.train()(batch.x)
    for (key, found), (_, wanted) in zip(net.named_buffers(), reference.named_buffers(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9, msg=key)
    assert all(module.training for module in net.modules())


def test_a_layer_that_the_user_put_into_evaluation_mode_stays_there(batch):
    net = make("batch norm", batch)
    net[3].eval()
    step_of(ES(population=4, evaluator="loop"), net, batch)
    assert [m.training for m in net] == [True, True, True, False, True]


def test_state_is_compared_and_put_back():
    net = nn.Sequential(Counter(), Kept(), nn.BatchNorm1d(3))
    state = State(list(net.modules()))
    assert state.changed() == ()
    net(torch.randn(4, 3))
    assert state.changed() == tuple(net)
    state.put_back()
    assert net[0].calls == 0
    assert "last" not in vars(net[1])
    assert net[2].num_batches_tracked == 0
    assert bool((net[2].running_mean == 0).all())


# Several inputs


class Towers(nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.numbers, self.last = nn.Linear(64, 8), nn.Linear(3, 8), nn.Linear(8, 10)

    def forward(self, image, numbers):
        return self.last(torch.tanh(self.image(image.flatten(1)) + self.numbers(numbers)))


class Output:
    def __init__(self, logits):
        self.logits = logits


class Model(Towers):
    def forward(self, *, image, numbers):
        return Output(super().forward(image, numbers))


@pytest.mark.parametrize("name", ["es", "eggroll", "spsa", "snes", "pgpe", "recombine", "forward_gradient"])
@pytest.mark.parametrize("frozen", [False, True])
def test_several_inputs_and_an_output_with_logits(name, frozen, batch):
    numbers = torch.randn(len(batch.y), 3).to(batch.x)
    steps = []
    for net, x in (
        (Towers(), (batch.x, numbers)),
        (Model(), {"image": batch.x, "numbers": numbers}),
        (One(), torch.cat([batch.x.flatten(1), numbers], 1)),
    ):
        torch.manual_seed(0)
        for p in net.parameters():
            nn.init.normal_(p, std=0.3)
        net.to(batch.x).image.requires_grad_(not frozen)
        options = {"evaluator": "loop"} if name in ("es", "eggroll", "recombine", "snes", "pgpe") else {}
        rule = RULES[name](**options)
        rule.bind(net, TASK, Batch(x, batch.y))
        zero_grad(net)
        rule.gradients(net, TASK, Batch(x, batch.y), Noise(0, 0))
        steps.append(flat({key: p.grad for key, p in net.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(steps[0], steps[1], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(steps[0], steps[2], rtol=1e-9, atol=1e-10)


class One(Towers):
    def forward(self, x):
        return super().forward(x[:, :64], x[:, 64:])


@pytest.mark.parametrize("evaluator", ["loop", "in_place", "vmap", "lowrank", "auto"])
def test_every_evaluator_takes_several_inputs(evaluator, batch):
    numbers = torch.randn(len(batch.y), 3).to(batch.x)
    torch.manual_seed(0)
    net = Towers().to(batch.x)
    this = Batch((batch.x, numbers), batch.y)
    expected = step_of(Eggroll(evaluator="loop", population=8), net, this)
    for max_memory in (None, 1e-4):  # the second makes slices
        found = step_of(Eggroll(evaluator=evaluator, population=8, max_memory=max_memory), net, this)
        torch.testing.assert_close(flat(found), flat(expected), rtol=1e-9, atol=1e-10)


def test_in_place_noise_of_spsa_is_the_same_for_both_members(batch):
    net = make("hidden noise", batch)
    found = step_of(SPSA(sigma=1e-6), net, batch)
    assert float(flat(found).abs().max()) < 1e3  # a difference of noise would be divided by 2e-6
