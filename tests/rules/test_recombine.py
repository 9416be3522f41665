from copy import deepcopy

import pytest
import torch
from torch import nn

from bpfree import Noise, Trainer, UserError
from bpfree.nets import NETS
from bpfree.population import Loop, Softmax
from bpfree.rules import Backprop, Eggroll, Recombine
from bpfree.training.freeze import freeze
from bpfree.types import Batch
from tests.helpers import TASK, bound, zero_grad
from tests.rules.test_es import tiny_net


def small_net(device):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 10)).double().to(device)


@pytest.mark.parametrize("mirrored", [False, True])
def test_its_expected_step_is_the_gradient_times_p_sigma2_over_t(mirrored, batch):
    """.grad -> (p sigma^2/T) grad L as the population grows, in size and in direction."""
    net = tiny_net(batch.x.device)
    sigma, p, temperature, population = 1e-3, 0.5, 1.0, 15_000
    rule = Recombine(population=population, sigma=sigma, p=p, temperature=temperature, mirrored=mirrored)
    bound(rule, net, batch)
    zero_grad(net)
    rule.gradients(net, TASK, batch, Noise(0, 0))
    step = torch.cat([q.grad.flatten() for q in net.parameters()])
    zero_grad(net)
    Backprop().gradients(net, TASK, batch, Noise())
    gradient = torch.cat([q.grad.flatten() for q in net.parameters()])
    if not mirrored:  # the mean of the noise itself, which mirroring cancels, drowns the step; take it off
        step = step + torch.cat([m.flatten() for m in mean_noise(rule, net, Noise(0, 0))])
    scale = float(step @ gradient / (gradient @ gradient))
    assert scale == pytest.approx(p * sigma**2 / temperature, rel=0.05)
    assert float(torch.cosine_similarity(step, gradient, dim=0)) > 0.98


def mean_noise(rule, net, noise):
    generation = rule.generation(list(net.parameters()), noise)
    equal = torch.full((len(rule.members),), rule.sigma / len(rule.members), dtype=torch.float64)
    return generation.combine(equal.to(next(net.parameters()).device))


def test_sgd_with_lr_1_is_the_published_update(batch):
    """theta <- sum_i softmax(-loss_i/T)_i theta_i, with copies of the whole net."""
    net = small_net(batch.x.device)
    rule = Recombine(population=6, sigma=0.1, temperature=0.05)
    trainer = Trainer(net, rule, TASK, {"name": "sgd", "lr": 1.0}, seed=4)
    theta = [p.detach().clone() for p in net.parameters()]
    generation = rule.generation(list(net.parameters()), Noise(4, 0))
    copies, losses = [], []
    for member in range(6):
        copies.append([t + 0.1 * e.dense()[0] for t, e in zip(theta, generation.draw(member), strict=True)])
        with torch.no_grad():
            named = dict(zip(dict(net.named_parameters()), copies[-1], strict=True))
            losses.append(TASK.loss(torch.func.functional_call(net, named, (batch.x,)), batch))
    weights = torch.softmax(-torch.stack(losses) / 0.05, 0)
    trainer.step(batch)
    for index, p in enumerate(net.parameters()):
        expected = sum(w * c[index] for w, c in zip(weights, copies, strict=True))
        torch.testing.assert_close(p.detach(), expected, rtol=0, atol=1e-12)


def test_a_masked_element_does_not_move(batch):
    rule = Recombine(sigma=2.0, p=0.25)
    parameters = [nn.Parameter(torch.zeros(200_000, dtype=torch.float64))]
    noise = next(rule.generation(parameters, Noise()).draw(0)).dense()[0]
    assert float((noise != 0).double().mean()) == pytest.approx(0.25, abs=0.01)
    assert float(noise.var()) == pytest.approx(0.25, rel=0.03)


def test_auto_temperature_ignores_the_scale_of_the_loss():
    losses = torch.rand(10, dtype=torch.float64)
    auto = Softmax("auto")
    torch.testing.assert_close(auto(losses), auto(118 * losses + 3))
    torch.testing.assert_close(auto(losses), Softmax(float(losses.std(correction=0)))(losses))


@pytest.mark.parametrize("temperature", ["auto", 0.01])
def test_a_member_without_a_finite_loss_weighs_nothing(temperature):
    losses = torch.tensor([1.0, float("nan"), 2.0, float("inf")])
    weights = Softmax(temperature)(losses)
    assert weights[1] == weights[3] == 0
    assert float(weights.sum()) == pytest.approx(-1)
    assert Softmax(temperature)(torch.full((3,), 2.0)).tolist() == pytest.approx([-1 / 3] * 3)
    assert Softmax(temperature)(torch.full((3,), float("nan"))).tolist() == [0, 0, 0]


def test_a_failing_evaluation_leaves_the_weights_to_the_bit(batch):
    net = small_net(batch.x.device)
    before = [p.detach().clone() for p in net.parameters()]
    calls = []

    class Failing(type(TASK)):
        def loss(self, out, batch):
            calls.append(1)
            if len(calls) > 3:
                raise KeyboardInterrupt
            return super().loss(out, batch)

    with pytest.raises(KeyboardInterrupt):
        Recombine().gradients(net, Failing(10), batch, Noise())
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), before, strict=True))


def test_autocast_sees_every_member(batch):
    """Autocast caches casts of weights; a stale one would make all members equal."""
    net = small_net(batch.x.device).float()
    with torch.autocast(batch.x.device.type, torch.bfloat16), torch.no_grad():
        rule = Recombine(sigma=0.5)
        this = Batch(batch.x.float(), batch.y)
        generation = rule.generation(list(net.parameters()), Noise())
        losses, _ = Loop()(net, this.x, lambda out: TASK.loss(out, this), generation)
    assert float(losses.std()) > 0.01


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_are_those_of_the_unperturbed_net(batch, frozen, momentum):
    net = NETS["mlp"]((1, 8, 8), 10, hidden=[8], batch_norm=True, dropout=0.9).double().to(batch.x.device)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.momentum = momentum
    expected = deepcopy(net)
    if frozen:
        freeze(net, ["norm*"])
    for _ in range(3):
        Recombine(evaluator="loop").gradients(net, TASK, batch, Noise())
        if not frozen:
            expected(batch.x)
    assert all(torch.allclose(v, net.get_buffer(k), rtol=1e-12) for k, v in expected.named_buffers())
    assert all(module.momentum == momentum for module in net.modules() if isinstance(module, nn.BatchNorm1d))
    assert net.training


@pytest.mark.parametrize("evaluator", ["loop", "in_place", "vmap", "lowrank"])
def test_batch_norm_goes_by_the_minibatch_as_in_training(batch, evaluator):
    """Members have the loss that backprop differentiates, whatever the running statistics, which differ by the call."""
    options = {"batch_norm": True, "dropout": 0.9}
    for name, sizes in {"mlp": {"hidden": [8]}, "conv": {"channels": [4, 6], "hidden": 8}}.items():
        net = NETS[name]((1, 8, 8), 10, **sizes, **options).double().to(batch.x.device)
        rule = Eggroll(evaluator=evaluator, population=4, sigma=1e-9)
        found = [rule.gradients(net, TASK, batch, Noise())["loss"].item() for _ in range(2)]
        for layer in net.modules():
            if isinstance(layer, nn.Dropout):
                layer.eval()
        expected = TASK.loss(net(batch.x), batch).item()
        assert found == pytest.approx([expected, expected], rel=1e-6)
        assert TASK.loss(net.eval()(batch.x), batch).item() != pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"population": 1}, "population: found 1, allowed: at least 2"),
        ({"population": 9, "mirrored": True}, "population: found 9, allowed: an even number"),
        ({"sigma": 0.0}, "sigma: found 0.0"),
        ({"p": 1.5}, "p: found 1.5"),
        ({"temperature": -1.0}, "temperature: found -1.0"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(UserError, match=message):
        Recombine(**options)
