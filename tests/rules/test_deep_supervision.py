"""Deep supervision differentiates the sum of a local rule's losses through the whole net; all else is the same."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bpfree import LocalRule, Noise, UserError
from bpfree.local.step import Step
from bpfree.rules import DFA, RULES, Backprop, DeepSupervision, Local, MonoForward
from bpfree.runs.config_file import load_config
from bpfree.spec import without_foreign_code
from bpfree.tasks import Sequence
from bpfree.types import Batch
from tests.helpers import TASK, bound, gradients, jolt, zero_grad

HEADED = [name for name, kind in RULES.items() if getattr(kind, "has_heads", False)]


class Detach(nn.Module):
    """The identity, behind which no gradient goes back."""

    def forward(self, h: Tensor) -> Tensor:
        return h.detach()


class Checkpointed(nn.Sequential):
    """A Sequential that computes its parts a second time in the backward pass."""

    def forward(self, h: Tensor) -> Tensor:
        for part in self:
            h = checkpoint(part, h, use_reentrant=False)
        return h


def small_net(like: Tensor, *, detached: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    cuts = [Detach(), Detach()] if detached else [nn.Identity(), nn.Identity()]
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), cuts[0], nn.Linear(16, 12), nn.Tanh(), cuts[1], nn.Linear(12, 10)
    ).to(like)


TAPS = ["2", "5"]


def supervised(rule: LocalRule | str, net: nn.Module, batch: Batch, task=TASK) -> DeepSupervision:
    """A bound rule whose heads have moved away from their start, where some are zero."""
    made = bound(DeepSupervision(rule=rule), net, batch, task)
    torch.manual_seed(2)
    jolt(made.parameters())
    return made


def written(rule, net: nn.Module, batch: Batch, task=TASK, head: nn.Module | None = None) -> dict[str, Tensor]:
    """Gradients of the net and of the heads; `head` is the rule that has the heads."""
    zero_grad(net, rule)
    rule.gradients(net, task, batch, Noise(0, 0))
    names = ("net", net), ("heads", head or rule)
    return {f"{part}.{key}": g for part, module in names for key, g in gradients(module).items()}


def close(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    strip = [{key.split(".")[0] + "." + key.split(".", 2)[2]: g for key, g in each.items()} for each in (a, b)]
    assert strip[0].keys() == strip[1].keys()
    for key, value in strip[0].items():
        torch.testing.assert_close(value, strip[1][key], rtol=1e-9, atol=1e-13)


def test_some_rules_have_heads():
    assert {"mono_forward", "local", "pred", "sim", "predsim", "cwcomp", "deeper_forward", "hff"} <= set(HEADED)


@pytest.mark.parametrize("name", HEADED)
def test_the_gradient_is_that_of_the_sum_of_all_losses(name, batch):
    net = small_net(batch.x)
    rule = supervised(RULES[name](taps=TAPS), net, batch)
    inner = rule.rule
    found = written(rule, net, batch, head=inner)
    h1 = net[:3](batch.x)
    h2 = net[3:6](inner.pass_on(0, h1))
    target = TASK.target(batch)
    inner._task, inner._step = TASK, Step(TASK, batch)
    total = inner.local_loss(0, h1, target) + inner.local_loss(1, h2, target)
    total = total + inner.output_weight * TASK.loss(net[6:](inner.pass_on(1, h2)), batch)
    zero_grad(net, rule)
    total.backward()
    close(
        found,
        {f"net.{k}": g for k, g in gradients(net).items()} | {f"heads.{k}": g for k, g in gradients(inner).items()},
    )


@pytest.mark.parametrize("name", HEADED)
def test_with_detached_boundaries_it_is_the_local_rule(name, batch):
    """And without them it is not: the first segment then learns from the losses of later ones too."""
    if getattr(RULES[name], "copies_modules", False):
        pytest.skip("its heads would have copies of the detached boundaries")
    net, cut = small_net(batch.x), small_net(batch.x, detached=True)
    rule = supervised(RULES[name](taps=TAPS), cut, batch)
    local = bound(RULES[name](taps=TAPS), net, batch)
    local.load_state_dict(rule.rule.state_dict())
    ours, theirs = written(rule, cut, batch, head=rule.rule), written(local, net, batch)
    close(ours, theirs)
    whole = written(rule, net, batch, head=rule.rule)
    assert not torch.allclose(whole["net.Sequential.1.weight"], ours["net.Sequential.1.weight"])
    torch.testing.assert_close(whole["net.Sequential.7.weight"], ours["net.Sequential.7.weight"])


@pytest.mark.parametrize("name", HEADED)
def test_with_one_segment_it_is_the_local_rule(name, batch):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).to(batch.x)
    rule, local = bound(DeepSupervision(rule=name), net, batch), bound(RULES[name](), net, batch)
    ours = written(rule, net, batch, head=rule.rule)
    assert ours
    close(ours, written(local, net, batch))


def test_without_heads_in_the_way_it_is_backprop(batch):
    """If the local losses do not reach the net, what is left is the gradient of the task's loss."""
    net = small_net(batch.x)
    rule = supervised("mono_forward", net, batch)
    for head in rule.rule.heads:
        nn.init.zeros_(head.weight)
    ours = written(rule, net, batch, head=nn.Module())
    close(ours, written(Backprop(), net, batch))


def test_activation_checkpointing_changes_nothing(batch):
    net = small_net(batch.x)
    rule = supervised("predsim", net, batch)
    plain = written(rule, net, batch, head=rule.rule)
    again = Checkpointed(*net)
    copied = bound(DeepSupervision(rule=RULES["predsim"](taps=list(rule.rule.taps))), again, batch)
    copied.load_state_dict(rule.state_dict())
    renamed = {
        k.replace("Checkpointed", "Sequential"): g for k, g in written(copied, again, batch, head=copied.rule).items()
    }
    close(renamed, plain)


def test_a_target_at_each_step(batch):
    """Heads answer at each of T steps, and the gradient goes back through all of them."""
    torch.manual_seed(0)
    x = torch.randn(5, 4, 3, dtype=torch.float64, device=batch.x.device)
    task, windows = Sequence(3), Batch(x, x.roll(-1, 1))
    net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).to(x)
    rule = supervised("mono_forward", net, windows, task)
    found = written(rule, net, windows, task, head=nn.Module())
    zero_grad(net)
    h1 = net[:2](x)
    h2 = net[2:4](h1)
    total = task.loss(net[4](h2), windows)
    for h, head in zip((h1, h2), rule.rule.heads, strict=True):
        total = total + task.loss(h @ head.weight.T, windows)
    total.backward()
    close(found, {f"net.{key}": g for key, g in gradients(net).items()})


def test_frozen_segments_pass_the_error_on(batch):
    net = small_net(batch.x)
    net[4].requires_grad_(False)
    rule = supervised("local", net, batch)
    found = written(rule, net, batch)
    assert {key.split(".")[2] for key in found} == {"1", "7"}
    assert all(bool(g.abs().sum() > 0) for g in found.values())


def test_the_net_is_read_as_the_local_rule_reads_it(batch):
    net = small_net(batch.x)
    for read in ("net", "last", "sum"):
        rule = supervised(MonoForward(read=read), net, batch)
        assert torch.equal(rule.predict(net, batch.x), rule.rule.predict(net, batch.x))
        assert rule.predicts_with_net == (read == "net")


def test_options_of_the_local_rule_come_from_a_config():
    config = load_config("digits/deep_supervision", ["rule.rule.name=local", "rule.rule.backward=sign"])
    config.check()
    rule = DeepSupervision(rule=config.rule["rule"])
    assert isinstance(rule.rule, Local)
    assert rule.rule.backward == "sign"


def test_rules_without_read_outs_are_refused():
    with pytest.raises(UserError, match=r"rule\.rule.*'dfa'"):
        DeepSupervision(rule="dfa")
    with pytest.raises(
        UserError,
        match="found DFA, whose segments do not learn from targets by read-outs, allowed: local, mono_forward",
    ):
        DeepSupervision(rule=DFA())
    with pytest.raises(UserError, match=r"rule\.rule\.read"):
        DeepSupervision(rule={"name": "mono_forward", "read": "first"})
    with without_foreign_code("config.yaml"), pytest.raises(UserError, match="not executed"):
        DeepSupervision(rule="tests.local.test_rule_author:Looks")


def test_it_does_not_pretend_to_be_local(batch):
    rule = DeepSupervision()
    assert rule.locality() == Backprop().locality()
    net = small_net(batch.x)
    assert len(bound(rule, net, batch).units(net)) == 1


def test_a_copy_trains_as_the_rule(batch):
    net = small_net(batch.x)
    rule = supervised("pred", net, batch)
    close(written(copy.deepcopy(rule), net, batch, head=nn.Module()), written(rule, net, batch, head=nn.Module()))
