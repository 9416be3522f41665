"""Every rule x every task: it learns, or it is refused early in one clear line."""

import re
import warnings
from functools import cache
from pathlib import Path

import pytest
import torch

import bpfree
from bpfree import UserError
from bpfree.data import DATASETS
from bpfree.data.sets.lorenz import lorenz
from bpfree.rules import RULES
from bpfree.rules.fa import FA
from bpfree.runs.config_file import load_config
from bpfree.tasks import TASKS, Regress, Sequence
from bpfree.types import ALL_TASKS, Batch
from tests.helpers import optimizer_for_any_task, own_net, repeatable_rule

DATA = {"regress": "diabetes"}


def test_the_names_that_rules_use_are_the_table():
    assert tuple(TASKS) == ALL_TASKS
    assert all(task.name == name for name, task in TASKS.items())
    assert all(set(rule.tasks) <= set(ALL_TASKS) and "classify" in rule.tasks for rule in RULES.values())


@cache
def windows():
    return tuple(lorenz(None, windows=64, test_windows=2, steps=12).train)


def net_for(rule, task):
    if net := own_net(rule):
        return net
    if task == "sequence":  # whose weights feedback alignment can see
        name = "liquid" if issubclass(RULES[rule], FA) else "gru"
        return {"name": name, "hidden": [12, 10], "each_step": True}
    return {"name": "mlp", "hidden": [24, 16], "activation": "tanh"}


@pytest.mark.parametrize("task", ["regress", "sequence"])
@pytest.mark.parametrize("name", list(RULES))
def test_a_rule_learns_a_task_or_refuses_it(name, task):
    if task not in RULES[name].tasks:
        with pytest.raises(UserError, match=f"rule '{name}' .* so it cannot ") as caught:
            load_config(f"digits/{name}", [f"task={task}"])
        assert "\n" not in str(caught.value)
        return
    data = DATA.get(task) or windows()
    optimizer, rule = optimizer_for_any_task(name, lr=1e-2), repeatable_rule(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = bpfree.fit(net_for(name, task), data, rule, epochs=6, optimizer=optimizer, task=task, batch_size=16)
    losses = [record["train"]["loss"] for record in run.metrics]
    assert losses[-1] < losses[0]
    assert all(torch.tensor(losses).isfinite())


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if rule.tasks == ("classify",)])
def test_who_owns_the_loop_is_told_as_well(name):
    net = bpfree.nets.NETS["gru"]((6, 3), 3, hidden=[4, 4], each_step=True)
    x = torch.randn(4, 6, 3)
    with pytest.raises(UserError, match="learns from class labels, so it cannot predict sequences"):
        bpfree.Trainer(net, name, Sequence(3)).step(Batch(x, x))
    with pytest.raises(UserError, match="learns from class labels, so it cannot regress"):
        bpfree.Trainer(net, name, Regress()).step(Batch(x, x[:, 0, :1]))


def test_data_sets_without_classes_say_so(tmp_path):
    assert (
        DATASETS["diabetes"](tmp_path).classes == DATASETS["lorenz"](tmp_path, windows=2, test_windows=2).classes == 0
    )


@pytest.mark.parametrize("task", ALL_TASKS)
def test_the_docs_say_which_rules_can_do_a_task(task):
    page = (Path(__file__).parents[2] / "docs" / "rules" / "README.md").read_text(encoding="utf-8")
    (listed,) = re.findall(rf"^\| `{task}` \| (.*) \|$", page, re.MULTILINE)
    able = [name for name, rule in RULES.items() if task in rule.tasks]
    assert listed == ("all" if able == list(RULES) else ", ".join(f"`{name}`" for name in able))
