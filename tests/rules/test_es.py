"""Evolution strategies: what their expected step is, and their objectives."""

import pytest
import torch
from torch import nn

import bpfree
from bpfree import Noise, Trainer, UserError
from bpfree.population import Generation
from bpfree.rules import ES, PGPE, RULES, SNES, SPSA, Backprop, Eggroll, ForwardGradient
from bpfree.runs.config import parse
from tests.helpers import TASK, bound, zero_grad


def small_net(device):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 10)).double().to(device)


def tiny_net(device):
    """118 parameters: how near a mean over members comes to the gradient goes by members for each parameter."""
    torch.manual_seed(0)
    layers = (nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 4), nn.Tanh(), nn.Linear(4, 10))
    return nn.Sequential(*layers).double().to(device)


def flat(net):
    return torch.cat([p.grad.flatten() for p in net.parameters()])


def step_of(rule, net, batch, step=0):
    zero_grad(net)
    rule.gradients(net, TASK, batch, Noise(0, step))
    return flat(net)


def gradient_of(net, batch):
    zero_grad(net)
    Backprop().gradients(net, TASK, batch, Noise())
    return flat(net)


@pytest.mark.parametrize(
    "rule",
    [
        ES(population=40_000, sigma=1e-4, shaping="raw", evaluator="vmap"),
        ES(population=40_000, sigma=1e-4, shaping="raw", perturbation="rademacher", evaluator="vmap"),
        Eggroll(population=40_000, sigma=1e-4, shaping="raw", evaluator="lowrank"),
        Eggroll(population=40_000, sigma=1e-4, shaping="raw", rank=3, evaluator="lowrank"),
        SPSA(pairs=20_000, sigma=1e-4, evaluator="vmap"),
        ForwardGradient(directions=12_000),
    ],
    ids=["es", "rademacher", "eggroll", "rank 3", "spsa", "forward_gradient"],
)
def test_the_expected_step_is_the_gradient(rule, batch):
    net = tiny_net(batch.x.device)
    bound(rule, net, batch)
    step, gradient = step_of(rule, net, batch), gradient_of(net, batch)
    assert float(torch.cosine_similarity(step, gradient, dim=0)) > 0.99
    assert float(step @ gradient / (gradient @ gradient)) == pytest.approx(1, rel=0.03)


@pytest.mark.parametrize("shaping", ["centred_ranks", "zscore", "utilities"])
def test_shaped_steps_go_downhill(shaping, batch):
    net = small_net(batch.x.device)
    rule = bound(Eggroll(population=4096, sigma=1e-3, shaping=shaping, evaluator="lowrank"), net, batch)
    assert float(torch.cosine_similarity(step_of(rule, net, batch), gradient_of(net, batch), dim=0)) > 0.85


def test_a_step_of_spsa_is_its_difference_times_its_noise(batch):
    net = small_net(batch.x.device)
    rule = bound(SPSA(sigma=1e-3), net, batch)
    generation = rule.generation(list(net.parameters()), Noise(0, 0))
    noise = [sample.dense()[0] for sample in generation.draw(0)]
    losses = []
    for sign in (1, -1):
        moved = [p + sign * 1e-3 * e for p, e in zip(net.parameters(), noise, strict=True)]
        named = dict(zip(dict(net.named_parameters()), moved, strict=True))
        losses.append(TASK.loss(torch.func.functional_call(net, named, (batch.x,)), batch).detach())
    expected = torch.cat([(losses[0] - losses[1]) / 2e-3 * e.flatten() for e in noise])
    torch.testing.assert_close(step_of(rule, net, batch), expected, rtol=1e-8, atol=1e-10)


def test_a_forward_gradient_is_the_directional_derivative_times_the_direction(batch):
    net = small_net(batch.x.device)
    rule = bound(ForwardGradient(), net, batch)
    step, gradient = step_of(rule, net, batch), gradient_of(net, batch)
    generation = Generation(list(net.parameters()), rule.members, rule.perturbation, Noise(0, 0))
    v = torch.cat([sample.dense().flatten() for sample in generation.draw(0)])
    torch.testing.assert_close(step, (gradient @ v) * v)


def test_sigma_decays_with_the_steps(batch):
    net = small_net(batch.x.device)
    rule = ES(sigma=0.1, sigma_decay=0.5)
    assert rule.generation(list(net.parameters()), Noise(0, 3)).scale == pytest.approx(0.1 / 8)


# Widths that are learned


def test_snes_is_the_published_update(batch):
    net = small_net(batch.x.device)
    rule = SNES(population=9, sigma=0.05, evaluator="loop")
    trainer = Trainer(net, rule, TASK, {"name": "sgd", "lr": 1.0})
    trainer.bind(batch)
    theta = torch.cat([p.detach().flatten() for p in net.parameters()])
    (chunk,) = rule.generation(list(net.parameters()), Noise(0, 0)).chunks(9)
    s = torch.cat([sample.dense().flatten(1) for sample in chunk.samples], 1)
    losses = losses_of(net, theta + 0.05 * s, batch)
    rank = losses.argsort().argsort() + 1
    u = (torch.log(torch.tensor(9 / 2 + 1)) - rank.log()).clamp_min(0)
    u = (u / u.sum() - 1 / 9).double()
    d = theta.numel()
    eta = (3 + torch.log(torch.tensor(float(d)))) / (5 * d**0.5)
    trainer.step(batch)
    found = torch.cat([p.detach().flatten() for p in net.parameters()])
    torch.testing.assert_close(found, theta + 0.05 * (u @ s), rtol=1e-6, atol=1e-8)
    widths = torch.cat([sigma.flatten() for sigma in rule.sigmas])
    torch.testing.assert_close(widths, 0.05 * torch.exp(eta / 2 * (u @ (s**2 - 1))), rtol=1e-6, atol=1e-8)


def test_pgpe_is_the_published_update_with_clipup(batch):
    net = small_net(batch.x.device)
    rule = PGPE(population=8, sigma=0.05, sigma_lr=9, evaluator="loop")
    trainer = Trainer(net, rule, TASK, {"name": "clipup", "lr": 0.1})
    trainer.bind(batch)
    theta = torch.cat([p.detach().flatten() for p in net.parameters()])
    (chunk,) = rule.generation(list(net.parameters()), Noise(0, 0)).chunks(8)
    s = torch.cat([sample.dense().flatten(1) for sample in chunk.samples], 1)
    s = torch.stack([s, -s], 1).flatten(0, 1)
    losses = losses_of(net, theta + 0.05 * s, batch)
    f = (losses.argsort().argsort() / 7 - 0.5).double()
    step = 0.05 * (f @ s) / 8
    for _ in range(2):
        trainer.step(batch)
        if trainer.progress.step == 1:
            found = torch.cat([p.detach().flatten() for p in net.parameters()])
            torch.testing.assert_close(found, theta - 0.1 * step / step.norm(), rtol=1e-6, atol=1e-8)
            change = (-9 * (f @ (s**2 - 1)) / 8).clamp(-0.2, 0.2)
            assert bool((change.abs() == 0.2).any())
            widths = torch.cat([sigma.flatten() for sigma in rule.sigmas])
            torch.testing.assert_close(widths, 0.05 * (1 + change), rtol=1e-6, atol=1e-8)
    moved = torch.cat([p.detach().flatten() for p in net.parameters()]) - found
    assert 0.05 < float(moved.norm()) <= 0.2 + 1e-9  # momentum, at twice the learning rate at most


def losses_of(net, thetas, batch):
    shapes = {name: p.shape for name, p in net.named_parameters()}
    losses = []
    for theta in thetas:
        parts = theta.split([shape.numel() for shape in shapes.values()])
        named = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        losses.append(TASK.loss(torch.func.functional_call(net, named, (batch.x,)), batch).detach())
    return torch.stack(losses)


def test_widths_shrink_where_they_harm_and_a_checkpoint_holds_them(digits_data, tmp_path):
    run = bpfree.fit(
        {"name": "mlp", "hidden": [16]}, "digits", "snes", epochs=6, optimizer={"name": "sgd", "lr": 1.0}, out=tmp_path
    )
    sigmas = run.trainer.rule.sigmas
    assert float(sigmas[0].std()) > 0
    again = bpfree.load(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(again.trainer.rule.sigmas, sigmas, strict=True))


# Objectives and options


def test_accuracy_itself_can_be_the_objective(digits_data):
    rule = {"name": "eggroll", "objective": "accuracy", "shaping": "centred_ranks"}
    net = {"name": "mlp", "hidden": [16], "activation": "sign"}
    run = bpfree.fit(net, "digits", rule, epochs=50, optimizer={"name": "adam", "lr": 0.02}, batch_size=128)
    assert run.result["test"]["accuracy"] > 0.7
    assert run.metrics[-1]["train"]["loss"] == pytest.approx(-run.metrics[-1]["train"]["accuracy"], abs=0.15)


def test_any_function_of_outputs_and_targets_is_minimised_or_maximised(batch):
    def margin(outputs, targets):
        right = outputs.gather(1, targets.unsqueeze(1)).squeeze(1)
        return float((right - outputs.mean(1)).mean())  # a number of Python, which no vmap can trace

    for maximize, sign in ((True, 1), (False, -1)):
        net = small_net(batch.x.device)
        rule = Eggroll(objective=margin, maximize=maximize, sigma=0.1)
        trainer = Trainer(net, rule, TASK, {"name": "adam", "lr": 0.05})
        before = margin(trainer.predict(batch.x), batch.y)
        for _ in range(15):
            trainer.step(batch)
        assert sign * (margin(trainer.predict(batch.x), batch.y) - before) > 1


@pytest.mark.parametrize("name", ["es", "eggroll", "recombine", "snes", "pgpe"])
def test_members_without_a_score_do_no_harm(name, batch):
    calls = []

    def sometimes(outputs, targets):
        calls.append(1)
        return float("nan") if len(calls) % 3 == 0 else float(nn.functional.cross_entropy(outputs, targets))

    net = small_net(batch.x.device)
    rule = bound(RULES[name](objective=sometimes, maximize=False, evaluator="loop"), net, batch)
    scalars = rule.gradients(net, TASK, batch, Noise(0, 0))
    assert bool(flat(net).isfinite().all())
    assert bool(scalars["loss"].isfinite())


def test_the_choice_of_auto_is_told_and_kept(tmp_path):
    net = {"name": "mlp", "hidden": [16]}
    run = bpfree.fit(net, "digits", "eggroll", epochs=1, out=tmp_path)
    assert run.result["evaluator"] in ("loop", "lowrank", "vmap")
    assert bpfree.load(tmp_path).trainer.rule.metadata() == {"evaluator": run.result["evaluator"]}


def test_a_rule_that_goes_on_to_another_net_chooses_anew(batch):
    """The first net's evaluator would leave the layer norm of the second as it is, and move it all the same."""
    rule = Eggroll(population=64)
    step_of(rule, small_net(batch.x.device), batch)
    normed = nn.Sequential(nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, 10)).to(batch.x)
    step = step_of(rule, normed, batch)
    torch.testing.assert_close(step, step_of(Eggroll(population=64, evaluator="loop"), normed, batch))
    assert rule.metadata()["evaluator"] in ("loop", "vmap")


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda out, y: (out.argmax(1) == y).float(), r"its score has the shape \[32\], allowed: one number"),
        (lambda out, y: "high", "its score has 'high', allowed: one number"),
    ],
)
@pytest.mark.parametrize("evaluator", ["loop", "lowrank", "auto"])
def test_a_score_that_is_no_number_is_refused(score, message, evaluator, batch):
    rule = Eggroll(objective=score, maximize=True, evaluator=evaluator)
    with pytest.raises(UserError, match=message):
        step_of(rule, small_net(batch.x.device), batch)


@pytest.mark.parametrize("name", ["accuracy", "macro_f1"])
def test_scores_of_classes_are_refused_where_samples_are_rebuilt(name):
    rule = {"name": "eggroll", "objective": name}
    with pytest.raises(UserError, match=f"objective: found {name}, which needs one class for each sample"):
        bpfree.fit({"name": "mlp", "hidden": [8]}, "digits", rule, epochs=1, task="reconstruct")


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"name": "es", "maximize": True}, "maximize: found true, but the objective is the loss"),
        ({"name": "es", "objective": 3}, "rule.objective: found 3, allowed: text or a function"),
        ({"name": "es", "evaluator": "lowrnk"}, "rule.evaluator: found 'lowrnk', allowed: "),
        ({"name": "es", "objective": "f1"}, "unknown objective 'f1'.*macro_f1"),
        ({"name": "es", "max_memory": 0}, "max_memory: found 0"),
        ({"name": "es", "populaton": 4}, "unknown key 'rule.populaton'. Did you mean 'rule.population'"),
        ({"name": "es", "max_memry": 4}, "unknown key 'rule.max_memry'. Did you mean 'rule.max_memory'"),
        ({"name": "eggroll", "rank": 0}, "rank: found 0, allowed: a number above 0"),
        ({"name": "spsa", "pairs": 0}, "population: found 0"),
        ({"name": "pgpe", "sigma_lr": -1}, "sigma_lr: found -1"),
    ],
)
def test_what_cannot_work_is_refused_when_the_config_is_read(rule, message):
    with pytest.raises(UserError, match=message):
        parse({"rule": rule})
