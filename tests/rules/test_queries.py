"""The forward passes that a rule declares are those that a step makes, counted by hooks on the net."""

import json

import pytest
import torch
from torch import nn

import bpfree
from bpfree import Noise, Rule
from bpfree.api import resume
from bpfree.diffusion import DiffusionRule
from bpfree.inputs import count
from bpfree.nets import NETS
from bpfree.nets.blocks import Block
from bpfree.rules import RULES
from bpfree.training.trainer import Trainer
from tests.helpers import IN_SHAPE, TASK, bound, net_for, repeatable_rule, zero_grad
from tests.runs.test_run import power_cut

VARIANTS = {
    "backprop, accumulated": ("backprop", {"accumulate": 3}),
    "dfa, flat": ("dfa", {"memory": "flat"}),
    "forward_forward, even": ("forward_forward", {"negatives": "even"}),
    "forward_gradient, 3": ("forward_gradient", {"directions": 3}),
    "deep_supervision, predsim": ("deep_supervision", {"rule": "predsim"}),
    "es, in place": ("es", {"population": 6, "evaluator": "in_place"}),
    "es, slices": ("es", {"population": 4, "evaluator": "loop", "max_memory": 1e-3}),
    "noprop_dt, random": ("noprop_dt", {"order": "random"}),
    "noprop_dt, chain": ("noprop_dt", {"readout_from": "chain"}),
    "diffusion_blocks, random": ("diffusion_blocks", {"order": "random", "blocks": 4}),
    "noprop_ct, 3 draws": ("noprop_ct", {"draws": 3}),
}


def passes(net: nn.Module, rule: Rule, batch, step: int) -> float:
    """Samples that a step sends through the net, or through each block of a denoising net, by samples of the batch."""
    parts = list(net.heads) if isinstance(rule, DiffusionRule) else [net]
    if rule.needs_net == "vit":  # it runs the layers of a block by themselves
        parts = [layer.mlp for layer in net if isinstance(layer, Block)]
    samples: list[int] = []

    def look(module: nn.Module, args: tuple, named: dict) -> None:
        samples.append(count(args[0] if args else named))

    hooks = [part.register_forward_pre_hook(look, with_kwargs=True) for part in parts]
    try:
        rule.gradients(net, TASK, batch, Noise(0, step))
    finally:
        for hook in hooks:
            hook.remove()
    return sum(samples) / len(parts) / len(batch.y)


def declared_and_counted(name: str, options: dict, net: nn.Module, batch) -> tuple[float, float]:
    rule = bound(RULES[name](**options) if options else repeatable_rule(name), net, batch)
    zero_grad(net, rule)
    rule.gradients(net, TASK, batch, Noise(0, 0))  # the first step studies the net
    return rule.forward_passes(net, TASK), passes(net, rule, batch, 1)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_declares_the_passes_that_it_makes(name, batch):
    declared, counted = declared_and_counted(name, {}, net_for(name, batch.x.device), batch)
    assert declared >= 1
    assert declared == pytest.approx(counted)


@pytest.mark.parametrize("variant", VARIANTS)
def test_options_change_what_is_declared(variant, batch):
    """Without batch norm members can be split into slices, and there is no state to learn."""
    name, options = VARIANTS[variant]
    if RULES[name].needs_net is not None:
        net = net_for(name, batch.x.device)
    else:
        torch.manual_seed(0)
        net = NETS["mlp"](IN_SHAPE, 10, hidden=[24, 16], activation="tanh").to(batch.x)
    declared, counted = declared_and_counted(name, options, net, batch)
    assert declared == pytest.approx(counted)
    if name == "es":
        assert declared == options["population"]


def test_side_by_side_members_are_counted_one_by_one(batch):
    """The net is called once for many members, and still each of them is a query."""
    for evaluator in ("vmap", "lowrank"):
        net = NETS["mlp"](IN_SHAPE, 10, hidden=[24]).to(batch.x)
        rule = bound(RULES["eggroll"](population=8, evaluator=evaluator), net, batch)
        rule.gradients(net, TASK, batch, Noise(0, 0))
        assert rule.forward_passes(net, TASK) == 8


def test_queries_of_a_training_are_those_of_its_steps(batch):
    trainer = Trainer(net_for("es", batch.x.device), {"name": "es", "population": 4, "evaluator": "loop"}, TASK, "sgd")
    for _ in range(3):
        trainer.step(batch)
    assert trainer.progress.queries == 3 * (4 + 1)  # batch norm learns its statistics in a pass of its own


def test_a_run_and_its_tracker_say_how_many(tmp_path, undrawn):
    run = bpfree.fit("mlp", "digits", "forward_forward", epochs=1, out=tmp_path / "run", trackers=["cost"])
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    steps = run.metrics[-1]["step"]
    assert result["queries"] == 3 * steps
    cost = {record["step"]: record["values"]["queries"] for record in run.tracked}
    assert cost == {step: 3 * step for step in cost}


def test_a_resumed_run_goes_on_counting(tmp_path, undrawn, at_once, monkeypatch):
    whole = bpfree.fit("mlp", "digits", "pepita", epochs=1).result["queries"]
    with power_cut(monkeypatch, 7, by_ctrl_c=True), pytest.raises(KeyboardInterrupt):
        bpfree.fit("mlp", "digits", "pepita", epochs=1, out=tmp_path / "torn")
    state = json.loads((tmp_path / "torn" / "last.ckpt" / "state.json").read_text())
    assert state["progress"]["queries"] == 2 * 7
    assert resume(tmp_path / "torn").result["queries"] == whole
