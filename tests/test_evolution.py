"""Searching without a net."""

import math
from typing import NamedTuple

import pytest
import torch

from bpfree import Evolution, UserError, evolve

BLACK_BOX = {
    "es": {"name": "adam", "lr": 0.05},
    "eggroll": {"name": "adam", "lr": 0.05},
    "snes": {"name": "sgd", "lr": 1.0},
    "pgpe": {"name": "clipup", "lr": 0.1},
    "recombine": {"name": "sgd", "lr": 2.0},
    "spsa": {"name": "adam", "lr": 0.05},
}


class Pair(NamedTuple):
    left: torch.Tensor
    right: list


def bowl(params):
    return (params["a"] - 2).square().mean() + (params["pair"].left.sum() + 1).square() + params["pair"].right[0] ** 2


START = {"a": torch.zeros(3, 4), "pair": Pair(torch.zeros(2), [torch.tensor(1.0)])}


@pytest.mark.parametrize("rule", BLACK_BOX)
def test_every_black_box_rule_finds_the_bottom_of_a_bowl_in_any_tree(rule):
    sigma = {"sigma": 0.1} if rule != "spsa" else {"pairs": 8, "sigma": 0.05}
    found = evolve(bowl, START, rule={"name": rule, **sigma}, steps=300, optimizer=BLACK_BOX[rule])
    assert found.score < 0.1 < float(bowl(START))
    assert float(bowl(found.params)) == pytest.approx(found.score)
    assert isinstance(found.params["pair"], Pair)
    assert found.params["a"].shape == (3, 4)
    assert not any(t.requires_grad for t in (found.params["a"], found.params["pair"].left))
    assert len(found.history) == 300
    assert torch.equal(START["a"], torch.zeros(3, 4))


def test_asking_again_gives_the_same_members_and_mirrored_ones_are_opposite():
    evolution = Evolution(torch.ones(5, 4), {"name": "eggroll", "population": 80})
    members = evolution.ask()
    assert len(members) == 80
    for i in (0, 33, -1):
        assert torch.equal(members[i], evolution.ask()[i])
    torch.testing.assert_close(members[6] + members[7], 2 * torch.ones(5, 4))
    assert [torch.equal(a, b) for a, b in zip(members[70:73], [members[i] for i in (70, 71, 72)], strict=True)] == [
        True
    ] * 3
    before = members[0]
    evolution.tell(torch.rand(80))
    assert not torch.equal(evolution.ask()[0], before)


def test_scores_may_be_maximised_and_some_may_be_missing():
    def hill(p):
        return math.nan if float(p[0]) > 1.5 else -float((p - 1).square().sum())

    told = []
    found = evolve(
        hill, torch.zeros(2), rule={"name": "es", "sigma": 0.3}, steps=150, optimizer={"name": "adam", "lr": 0.05},
        maximize=True, callback=lambda step, score: told.append((step, score)),
    )  # fmt: skip
    assert found.score > -0.1
    assert [step for step, _ in told] == list(range(1, 151))
    assert all(math.isfinite(score) for _, score in told)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Evolution([], "es"), "params: allowed: at least one tensor"),
        (lambda: Evolution(torch.zeros(3, dtype=torch.int64)), "all of floating-point types"),
        (lambda: Evolution({"a": 1.0}), "params: found float, allowed: tensors"),
        (lambda: Evolution(torch.zeros(2), "dfa"), "rule: found DFA, allowed: recombine, es"),
        (lambda: Evolution(torch.zeros(2), "ess"), "unknown rule 'ess'"),
        (lambda: Evolution(torch.zeros(2)).tell([1.0]), r"scores: found \[1\], allowed: one of each of 64 members"),
        (lambda: evolve(bowl, START, steps=0), "steps: found 0"),
    ],
)
def test_what_cannot_work_is_said(call, message):
    with pytest.raises(UserError, match=message):
        call()
