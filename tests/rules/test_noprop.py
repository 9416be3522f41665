"""What all NoProp rules have in common, and the continuous and the hybrid one against their equations."""

import contextlib
import copy
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch import nn

import bpfree
from bpfree import Batch, Noise, Trainer, UserError
from bpfree.diffusion import DiffusionRule
from bpfree.diffusion.times import stratified
from bpfree.nets import Denoiser
from bpfree.noise import counting_everywhere
from bpfree.rules import RULES, NoPropCT, NoPropDT, NoPropFM, NoPropHybrid
from bpfree.runs.config import parse
from bpfree.runs.config_file import apply_override, load_config
from bpfree.tasks import Classify
from tests.helpers import IN_SHAPE, TASK, bound, denoiser_for, gradients, jolt, same, without_pictures, zero_grad

FAMILY = [name for name, rule in RULES.items() if issubclass(rule, DiffusionRule)]
DIMS = {"one_hot": 10, "learned": 20, "prototype": 64}


def pair(name, batch, trunk="own", embedding="one_hot", **options):
    torch.manual_seed(0)
    kind = denoiser_for(name) | {"trunk": trunk, "embedding_dim": DIMS[embedding], "width": 16}
    net = Denoiser(IN_SHAPE, 10, **kind).double().to(batch.x.device)
    return net, bound(RULES[name](embedding=embedding, **options), net, batch)


def test_the_family_is_complete():
    assert set(FAMILY) == {"noprop_dt", "noprop_ct", "noprop_fm", "noprop_hybrid", "noprop_linear"}


@pytest.mark.parametrize("embedding", DIMS)
@pytest.mark.parametrize("trunk", ["own", "shared", "local"])
@pytest.mark.parametrize("name", FAMILY)
def test_what_should_learn_moves_and_nothing_else(name, trunk, embedding, batch):
    """Trunks and learned embeddings among it, which are easily left out of every optimiser or detached."""
    net, rule = pair(name, batch, trunk, embedding)
    trainer = Trainer(net, rule, TASK, {"name": "sgd", "lr": 1e-3})
    buffers = copy.deepcopy(dict(rule.named_buffers()))
    for _ in range(2):  # classifiers that start at zero send nothing back in the first step
        trainer.step(batch)
    zero_grad(net, rule)
    rule.gradients(net, TASK, batch, Noise(0, 2))
    parameters = [*net.parameters(), *rule.parameters()]
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in parameters)
    assert len(list(rule.embedding.parameters())) == (embedding != "one_hot")
    assert all(torch.equal(buffers[name], value) for name, value in rule.named_buffers())
    units = [id(p) for unit in rule.units(net) for p in unit]
    assert sorted(units) == sorted(id(p) for p in parameters)


@pytest.mark.parametrize("name", FAMILY)
def test_inference_never_sees_the_label(name, digits_data):
    """With the labels of the test set shuffled the predictions stay, and accuracy falls to chance."""
    net = {"name": "denoiser", **denoiser_for(name), "width": 32}
    run = bpfree.fit(net, "digits", name, epochs=8, optimizer={"name": "adam", "lr": 5e-3})
    x, y = digits_data.test.x, digits_data.test.y
    shuffled = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(0))]
    assert run.evaluate((x, y))["accuracy"] > 0.5
    assert run.evaluate((x, shuffled))["accuracy"] < 0.25
    assert torch.equal(run.predict(x), run.predict(x))
    assert float((run.predict(x) == shuffled).double().mean()) == pytest.approx(
        run.evaluate((x, shuffled))["accuracy"], abs=1e-6
    )


@pytest.mark.parametrize("name", FAMILY)
def test_accuracy_while_training_is_without_the_label(name, batch):
    """An untrained net is at chance: a z drawn with the true label would give it away."""
    net, rule = pair(name, batch)
    assert float(rule.gradients(net, TASK, batch, Noise(0, 0))["accuracy"]) < 0.5


@pytest.mark.parametrize("name", FAMILY)
def test_controls_stand_beside_the_prediction(name, batch):
    net, rule = pair(name, batch)
    net.eval()
    found = rule.extra_outputs(net, batch.x)
    assert set(found) == {"one_step" if rule.timed else "block1", "stochastic"}
    assert all(scores.shape == (32, 10) for scores in found.values())
    rule.inference = "stochastic"
    assert torch.equal(found["stochastic"], rule.predict(net, batch.x))
    assert "deterministic" in rule.extra_outputs(net, batch.x)


@pytest.mark.parametrize("name", FAMILY)
def test_the_path_ends_where_the_prediction_is_read(name, batch):
    net, rule = pair(name, batch)
    net.eval()
    states = list(rule.walk(net, batch.x, stochastic=False))
    assert states[0].time == 0
    assert states[-1].time == 1
    assert states[0].scores is None
    torch.testing.assert_close(rule.conclude(iter(states)), rule.predict(net, batch.x))


@pytest.mark.parametrize("name", FAMILY)
def test_the_trunk_runs_once_in_inference(name, batch):
    for trunk in ("shared", "local"):
        net, rule = pair(name, batch, trunk)
        calls = []
        net.trunks[0].register_forward_hook(lambda m, args, out, calls=calls: calls.append(1))
        net.eval()
        rule.predict(net, batch.x)
        assert len(calls) == 1


@pytest.mark.parametrize("name", FAMILY)
def test_no_layer_of_a_local_trunk_moves_when_another_part_changes(name, batch):
    net, rule = pair(name, batch, "local")
    stages = len(rule.stage_heads)
    assert stages == 2
    Trainer(net, rule, TASK, {"name": "sgd", "lr": 0.1}).step(batch)
    units = rule.units(net)

    def written():
        zero_grad(net, rule)
        rule.gradients(net, TASK, batch, Noise(0, 0))
        return [[p.grad.clone() for p in unit] for unit in units]

    before = written()
    for changed in range(stages, len(units)):  # heads and what they share
        jolt(units[changed])
    after = written()
    assert all(torch.equal(x, y) for i in range(stages) for x, y in zip(before[i], after[i], strict=True))
    jolt(rule.stage_heads[1].parameters())
    assert all(torch.equal(x, y) for x, y in zip(before[0], written()[0], strict=True))


def test_with_a_local_trunk_nothing_is_differentiated_through_two_layers(batch):
    """Every weight's gradient is a product with an input that has no history."""
    net, rule = pair("noprop_dt", batch, "local")
    histories = []
    layers = [m for m in net.modules() if isinstance(m, nn.Linear)]
    for layer in layers:
        layer.register_forward_hook(lambda m, args, out: histories.append(args[0].requires_grad))
    rule.gradients(net, TASK, batch, Noise(0, 0))
    assert len(histories) == len(layers)
    assert not any(histories)


def test_a_linear_head_can_be_bayes_rule():
    """Equal class shares, Gaussian noise: the posterior of the label is softmax of a linear function of z."""
    abar, u = 0.3, torch.eye(10, dtype=torch.float64)
    z = torch.randn(50, 10, dtype=torch.float64)
    likelihood = -(z.unsqueeze(1) - abar**0.5 * u).square().sum(2) / (2 * (1 - abar))
    torch.testing.assert_close(likelihood.softmax(1), (abar**0.5 / (1 - abar) * z @ u.T).softmax(1))


# Continuous time


def test_the_loss_of_ct_is_eq_9(batch):
    net, rule = pair("noprop_ct", batch, draws=3)
    seen = []
    net.heads[0].register_forward_hook(lambda m, args, out: seen.append((*args, out)))
    scalars = rule.gradients(net, TASK, batch, Noise(0, 0))
    _, z, times, logits = seen[0]
    assert len(z) == 96
    u = nn.functional.one_hot(batch.y, 10).double().repeat(3, 1)
    error = (logits.softmax(1) - u).square().sum(1)
    snr = rule.schedule.snr(times)
    slope = (rule.schedule.snr(times + 1e-6) - rule.schedule.snr(times - 1e-6)) / 2e-6
    torch.testing.assert_close(scalars["loss/block1"], (0.5 * slope * error).mean().detach(), rtol=1e-5, atol=0)
    z = z.detach()
    snr = snr.detach()
    abar = snr / (1 + snr)
    eps = (z - abar.sqrt().unsqueeze(1) * u) / (1 - abar).sqrt().unsqueeze(1)
    assert float(eps.mean()) == pytest.approx(0, abs=0.1)
    assert float(eps.var()) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("counted", [False, True])
def test_times_are_uniform_and_fill_the_interval(counted):
    with counting_everywhere() if counted else contextlib.nullcontext():
        check_times()


def check_times():
    times = stratified(100, torch.zeros((), dtype=torch.float64), Noise(0, 3))
    assert torch.equal((times * 100).floor().sort().values, torch.arange(100.0).double())
    assert not torch.equal(times, times.sort().values)
    first = torch.stack([stratified(8, torch.zeros(()), Noise(0, step))[0] for step in range(1500)])
    assert float(first.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(first.var()) == pytest.approx(1 / 12, abs=0.005)


class Known(nn.Module):
    """A denoising net whose head gives what a perfect one would."""

    embedding_dim, predicts, timed, local = 2, "scores", True, False

    def __init__(self, head):
        super().__init__()
        self.trunks = nn.ModuleList([nn.Identity()])
        self.heads = nn.ModuleList([head])


class BayesCT(nn.Module):
    def __init__(self, schedule):
        super().__init__()
        self.schedule = schedule

    def forward(self, features, z, time):
        abar = self.schedule.abar(time).unsqueeze(1)
        return abar.sqrt() / (1 - abar) * z


@pytest.mark.parametrize("schedule", ["cosine", "linear", "learned"])
def test_the_ode_of_ct_has_the_marginals_of_q(schedule):
    """Two classes with equal shares: from z_0 ~ q the probability flow arrives at q(z_1), not only at its mean."""
    rule = NoPropCT(schedule={"name": schedule, "abar_min": 0.02, "abar_max": 0.9}, steps=200, solver="heun")
    rule.embedding = bpfree.diffusion.OneHot(Classify(2), 2, 1).double()
    rule.schedule = rule.schedule.double()
    net = Known(BayesCT(rule.schedule))
    n = 20_000
    u = torch.eye(2, dtype=torch.float64)[torch.arange(n) % 2]
    times = torch.zeros((), dtype=torch.float64)
    start = rule._noised(u, times.expand(n), Noise(1)).detach()
    with torch.no_grad():
        features = torch.zeros(n, 0, dtype=torch.float64)
        path = bpfree.diffusion.solve(lambda z, t: rule.field(net, features, z, t), start, 200, "heun")
    for step, time in ((100, 0.5), (200, 1.0)):
        abar = float(rule.schedule.abar(torch.tensor(time, dtype=torch.float64)).detach())
        z = path[step]
        assert float(z.mean()) == pytest.approx(abar**0.5 / 2, abs=0.01)
        # along the line between the embeddings: two modes; across it: noise alone
        along, across = (z @ torch.tensor([1.0, -1.0]).double()) / 2**0.5, z.sum(1) / 2**0.5
        assert float(across.var()) == pytest.approx(1 - abar, rel=0.03)
        assert float(along.var()) == pytest.approx(1 - abar + abar / 2, rel=0.03)
        kurtosis = float(along.pow(4).mean() / along.var() ** 2)
        m, s = (abar / 2) ** 0.5, (1 - abar) ** 0.5
        assert kurtosis == pytest.approx((m**4 + 6 * m**2 * s**2 + 3 * s**4) / (m**2 + s**2) ** 2, abs=0.06)


def test_the_field_of_ct_is_bounded_at_the_end():
    """(u^ - z)/(1 - abar) would be stiff there; this one does with a few steps."""
    rule = NoPropCT(schedule={"name": "cosine", "abar_min": 0.001, "abar_max": 0.999})
    rule.embedding = bpfree.diffusion.OneHot(Classify(2), 2, 1)
    net = Known(BayesCT(rule.schedule))
    for time in torch.linspace(0.01, 0.99, 20):
        z = rule.schedule.abar(time).sqrt() * torch.eye(2)
        assert float(rule.field(net, torch.zeros(2, 0), z, time).abs().max()) < 2


# Flow matching


def test_the_velocity_of_fm_makes_the_round_trip():
    """With one label left, v = (u - z)/(1 - t) goes from any noise to the label, in any number of Euler steps."""
    rule = NoPropFM()
    rule.embedding = bpfree.diffusion.OneHot(Classify(2), 2, 1).double()
    label = torch.tensor([0.0, 1.0], dtype=torch.float64)

    class Straight(nn.Module):
        def forward(self, features, z, time):
            return (label - z) / (1 - time.unsqueeze(1))

    z0 = Noise().randn(50, 2, dtype=torch.float64)
    net = Known(Straight())
    for steps in (1, 2, 7):
        rule.steps = steps
        path = bpfree.diffusion.solve(lambda z, t: rule.field(net, z0, z, t), z0, steps)
        torch.testing.assert_close(path[-1], label.expand(50, 2))
        time = 1 / steps
        torch.testing.assert_close(path[1], time * label + (1 - time) * z0)


@pytest.mark.parametrize("sigma", [0.0, 0.3])
def test_the_loss_of_fm_is_eq_10(sigma, batch):
    net, rule = pair("noprop_fm", batch, sigma=sigma)
    seen = []
    net.heads[0].register_forward_hook(lambda m, args, out: seen.append((*args, out)))
    scalars = rule.gradients(net, TASK, batch, Noise(0, 0))
    _, z, times, v = seen[0]
    u = nn.functional.one_hot(batch.y, 10).double()
    t = times.unsqueeze(1)
    start = Noise(0, 0).fold("z").randn(32, 10, dtype=torch.float64, device=z.device)
    rest = z - t * u - (1 - t) * start
    assert float(rest.std()) == pytest.approx(sigma, rel=0.15, abs=1e-12)
    expected = (v - (u - start)).square().sum(1).mean()
    torch.testing.assert_close(scalars["loss/block1"], expected.detach())
    assert float(scalars["loss/readout"]) == 0


@pytest.mark.parametrize("embedding", ["learned", "prototype"])
def test_the_anchor_of_fm_is_a_linear_layer_that_does_not_predict(embedding, batch):
    """Eq. 13: CE(softmax(linear(z_t + (1 - t) v)), y) with learned embeddings; the nearest embedding predicts."""
    net, rule = pair("noprop_fm", batch, embedding=embedding)
    points = torch.randn(5, rule.embedding.dim).to(batch.x)
    torch.testing.assert_close(rule.anchor(points), rule.embedding.nearest(points))  # where it starts
    with torch.no_grad():
        rule.anchor.weight.normal_()
    seen = []
    net.heads[0].register_forward_hook(lambda m, args, out: seen.append((*args, out)))
    scalars = rule.gradients(net, TASK, batch, Noise(0, 0))
    _, z, times, scores = seen[0]
    pointed = z + (1 - times.unsqueeze(1)) * (scores @ rule.embedding.weight)
    expected = nn.functional.cross_entropy(pointed @ rule.anchor.weight.T + rule.anchor.bias, batch.y)
    torch.testing.assert_close(scalars["loss/readout"], expected.detach())
    before = rule.predict(net, batch.x)
    with torch.no_grad():
        rule.anchor.weight.zero_()
    assert torch.equal(rule.predict(net, batch.x), before)


class OneBatch(list):
    def epoch(self):
        return iter(self)


@pytest.mark.parametrize("name", ["noprop_dt", "noprop_fm"])
def test_classifiers_start_from_the_prototypes_that_were_chosen(name, batch):
    _, rule = pair(name, batch, embedding="prototype")
    at_random = rule.embedding.weight.clone()
    rule.begin(OneBatch([batch]), steps=1, resumed=False)
    assert not bool((rule.embedding.weight == at_random).all(1).any())
    classifier = rule.readout if name == "noprop_dt" else rule.anchor
    assert torch.equal(classifier.weight, rule.embedding.weight)


# Noise prediction


def test_the_true_noise_gives_hybrid_the_true_embedding(batch):
    net, rule = pair("noprop_hybrid", batch)
    u = nn.functional.one_hot(batch.y, 10).double()
    eps = torch.randn_like(u)
    for t in range(1, 4):
        z = rule.levels.posterior(t - 1, u, eps)
        torch.testing.assert_close(rule.estimate(t, eps, z), u)
        loss = rule.block_losses(range(t, t + 1), eps[None], z[None], eps[None], TASK, batch).detach()
        readout = TASK.loss(rule.readout(u), batch).detach() if t == 3 else 0.0
        assert float(loss) == pytest.approx(float(readout), abs=1e-12)
    assert net


def test_block_t_of_hybrid_sees_level_t_minus_1_as_inference_gives_it(batch):
    """The code that the rule comes from is off by one level here."""
    net, rule = pair("noprop_hybrid", batch)
    trained = []
    for t, head in enumerate(net.heads, start=1):
        head.register_forward_hook(lambda m, args, out, t=t: trained.append((t, args[1])))
    rule.gradients(net, TASK, batch, Noise(0, 0))
    u = nn.functional.one_hot(batch.y, 10).double()
    for t, z in trained:
        eps = rule._eps(range(t - 1, t), z, Noise(0, 0))[0]
        torch.testing.assert_close(z, rule.levels.posterior(t - 1, u, eps))
    perfect = SimpleNamespace(levels=rule.levels)
    z = 0.2**0.5 * u + 0.8**0.5 * torch.randn_like(u)
    for t in range(1, 4):  # the chain of a perfect block visits the levels that it was trained on
        a, b, _ = perfect.levels.step(t)
        mean_before = float((z * u).sum(1).mean())
        assert mean_before == pytest.approx(float(rule.levels.abar[t - 1]) ** 0.5, abs=0.25)
        z = a * u + b * z


def test_hybrid_refuses_a_level_of_noise_alone():
    with pytest.raises(UserError, match="schedule.abar_min: found 0, allowed: above 0"):
        NoPropHybrid(schedule={"abar_min": 0})


# Rebuilding


@pytest.mark.parametrize("name", ["noprop_dt", "noprop_fm"])
@pytest.mark.parametrize("trunk", ["own", "local"])
def test_an_image_is_rebuilt_from_noise(name, trunk, digits_data):
    net = {"name": "denoiser", **denoiser_for(name), "trunk": trunk, "width": 32}
    x, unseen = 15 * digits_data.train.x, 15 * digits_data.test.x  # gray values up to 240
    adam = {"name": "adam", "lr": 5e-3}
    run = bpfree.fit(net, x, name, epochs=12, task="reconstruct", optimizer=adam, test=unseen)
    original = run.preprocess.target(unseen)
    error = (run.predict(unseen) - original).square().mean()
    mean = run.preprocess.target(x).mean(0)
    assert float(error) == pytest.approx(run.result["test"]["loss"], rel=1e-3)
    assert float(error) < 0.8 * float((mean - original).square().mean()), "better than the mean image"


# Nets


@pytest.mark.parametrize("backbone", ["conv", "resnet18"])
@pytest.mark.parametrize("trunk", ["own", "shared", "local"])
def test_backbones_for_images_train(backbone, trunk, batch):
    torch.manual_seed(0)
    net = Denoiser(IN_SHAPE, 10, blocks=2, backbone=backbone, trunk=trunk, width=32).to(batch.x.device)
    trainer = Trainer(net, "noprop_dt", TASK, {"name": "adam", "lr": 3e-3})
    first = Batch(batch.x[:16].float(), batch.y[:16])
    accuracies = [float(trainer.step(first)["accuracy"]) for _ in range(30)]
    assert max(accuracies[-5:]) >= 0.5


@pytest.mark.parametrize(
    ("rule", "message"), [("noprop_ct", "one block that takes the time as an input"), ("noprop_fm", "one block")]
)
def test_a_net_without_time_is_refused(rule, message, batch):
    net = Denoiser(IN_SHAPE, 10, blocks=2, width=8).to(batch.x)
    with pytest.raises(UserError, match=f"{message}.*Use net.blocks=1 net.head.timed=true"):
        RULES[rule]().bind(net, TASK, batch)


def test_backprop_trains_the_same_nets(batch):
    for options in ({"blocks": 3}, {"blocks": 1, "head": {"timed": True}}, {"blocks": 1, "trunk": "local"}):
        net = Denoiser(IN_SHAPE, 10, width=16, **options).double().to(batch.x.device)
        trainer = Trainer(net, "backprop", TASK, {"name": "adam", "lr": 1e-2})
        losses = [float(trainer.step(batch)["loss"]) for _ in range(5)]
        assert losses[-1] < losses[0]


def test_dt_is_unchanged_by_a_random_state_outside(batch):
    states = []
    for seed in (0, 1):
        net, rule = pair("noprop_dt", batch, "shared", "learned")
        torch.manual_seed(seed)
        rule.gradients(net, TASK, batch, Noise(0, 0))
        states.append(gradients(net, rule))
    assert same(*states)
    assert NoPropDT().eta == 0.1


def test_old_keys_still_work_in_python():
    with pytest.warns(DeprecationWarning, match=r"NoPropCT.abar_max is now NoPropCT.schedule.abar_max"):
        old = NoPropCT(schedule="cosine", abar_max=0.9)
    new = NoPropCT(schedule={"name": "cosine", "abar_max": 0.9})
    assert old.schedule.last == new.schedule.last
    assert old.schedule.first == NoPropCT(schedule="cosine").schedule.first  # what is left out is the rule's default
    with (
        pytest.warns(DeprecationWarning, match="is now Denoiser.head.timed"),
        pytest.warns(DeprecationWarning, match="is now Denoiser.backbone.norm"),
    ):
        before = Denoiser(IN_SHAPE, 10, blocks=1, timed=True, conv_norm=True, backbone="conv", width=8)
    now = Denoiser(IN_SHAPE, 10, blocks=1, head={"timed": True}, backbone={"name": "conv", "norm": True}, width=8)
    assert before.timed
    assert before.state_dict().keys() == now.state_dict().keys()


def test_old_keys_still_work_in_a_config():
    """They end at their new places, and an override of an old key replaces the value at the new place."""
    with pytest.warns(DeprecationWarning, match="net.conv_norm is now net.backbone.norm"):
        config = load_config("mnist/noprop_ct", ["net.conv_norm=false"])
    assert config.net["backbone"] == {"name": "conv", "norm": False}
    values = {"rule": {"name": "noprop_ct", "abar_max": 0.9}}
    with pytest.warns(DeprecationWarning, match="rule.abar_max is now rule.schedule.abar_max"):
        assert parse(values).plain()["rule"] == {"name": "noprop_ct", "schedule": {"abar_max": 0.9}}
    with pytest.warns(DeprecationWarning, match="rule.abar_max is now rule.schedule.abar_max"):
        apply_override(values, "rule.schedule.abar_max=0.8")
    assert values["rule"]["schedule"] == {"abar_max": 0.8}
    with pytest.raises(UserError, match="found both abar_max and schedule.abar_max"):
        parse({"rule": {"name": "noprop_ct", "abar_max": 0.9, "schedule": {"abar_max": 0.8}}})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "cosin"}, "schedule.name: found 'cosin', allowed: cosine or linear or learned"),
        ({"schedule": {"abr_max": 1}}, "schedule.abr_max"),
        ({"schedule": 3}, r"schedule: found 3, allowed: a name, or a section of keys \(name, abar_min, abar_max\)"),
        ({"schedule": {"abar_max": "x"}}, "schedule.abar_max: found 'x', allowed: number"),
    ],
)
def test_a_wrong_schedule_is_refused_by_its_key(options, message):
    with pytest.raises(UserError, match=message):
        NoPropCT(**options)


def test_a_run_of_an_earlier_version_loads(tmp_path):
    """Its config has the keys of then, also beside an override of a present key."""
    net = {"name": "denoiser", "blocks": 1, "head": {"timed": True}, "width": 8}
    rule = {"name": "noprop_ct", "schedule": {"abar_max": 0.9}}
    with without_pictures():
        run = bpfree.fit(net, "digits", rule=rule, epochs=1, out=tmp_path / "run")
    path = tmp_path / "run" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["net"] = {"name": "denoiser", "blocks": 1, "timed": True, "width": 8}
    config["rule"] = {"name": "noprop_ct", "abar_max": 0.9}
    path.write_text(yaml.safe_dump(config))
    with (
        pytest.warns(DeprecationWarning, match="net.timed is now net.head.timed"),
        pytest.warns(DeprecationWarning, match="rule.abar_max is now rule.schedule.abar_max"),
    ):
        loaded = bpfree.load(tmp_path / "run", overrides=["rule.schedule.abar_min=0.01"])
    assert loaded.config.rule["schedule"] == {"abar_max": 0.9, "abar_min": 0.01}
    assert same(run.net.state_dict(), loaded.net.state_dict())
