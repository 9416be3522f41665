"""What is made of scores."""

import math

import pytest
import torch
from sklearn.metrics import f1_score

from bpfree import UserError
from bpfree.population import OBJECTIVES, SHAPINGS, Score
from bpfree.population.shaping import centred_ranks, raw, utilities, zscore

SCORES = torch.tensor([3.0, 1.0, 2.0, 1.0, 7.0], dtype=torch.float64)


def test_ranks_are_centred_and_ties_share_theirs():
    assert centred_ranks(SCORES).tolist() == [0.25, -0.375, 0.0, -0.375, 0.5]
    assert centred_ranks(torch.tensor([4.0])).tolist() == [-0.5]


def test_utilities_are_those_of_natural_evolution_strategies():
    distinct = torch.tensor([0.3, 0.1, 0.2, 0.5, 0.4], dtype=torch.float64)
    by_rank = [max(0.0, math.log(5 / 2 + 1) - math.log(rank)) for rank in range(1, 6)]
    u = [value / sum(by_rank) - 1 / 5 for value in by_rank]
    assert (-utilities(distinct)).tolist() == pytest.approx([u[2], u[0], u[1], u[4], u[3]], abs=1e-7)
    tied = -utilities(SCORES)
    assert tied.tolist() == pytest.approx([u[3], (u[0] + u[1]) / 2, u[2], (u[0] + u[1]) / 2, u[4]], abs=1e-7)


def test_z_scores_and_raw_scores():
    torch.testing.assert_close(zscore(SCORES), (SCORES - SCORES.mean()) / SCORES.std(correction=0))
    assert torch.equal(zscore(torch.full((3,), 2.0)), torch.zeros(3))
    assert torch.equal(raw(SCORES), SCORES)


@pytest.mark.parametrize("name", SHAPINGS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_member_that_failed_is_the_worst(name, bad):
    weights = SHAPINGS[name](torch.tensor([1.0, bad, 3.0, 2.0]))
    assert bool(weights.isfinite().all())
    assert float(weights[1]) == float(weights.max())
    assert bool(SHAPINGS[name](torch.full((4,), bad)).isfinite().all())


@pytest.mark.parametrize("name", SHAPINGS)
def test_the_better_weighs_less(name):
    weights = SHAPINGS[name](torch.linspace(0, 1, 9))
    assert bool((weights.diff() >= 0).all())
    assert float(weights[0]) < float(weights[-1])
    if name != "raw":
        assert float(weights.sum()) == pytest.approx(0, abs=1e-5)


def test_scores_by_name_are_those_of_sklearn():
    torch.manual_seed(0)
    out, y = torch.randn(60, 5), torch.randint(0, 4, (60,))
    out[:, 3] -= 9  # a class that is never predicted
    guess = out.argmax(1)
    assert float(OBJECTIVES["accuracy"](out, y)) == pytest.approx(float((guess == y).float().mean()))
    assert float(OBJECTIVES["macro_f1"](out, y)) == pytest.approx(f1_score(y, guess, average="macro"))
    many = torch.stack([out, out.flip(1)])
    together = torch.func.vmap(lambda o: OBJECTIVES["macro_f1"](o, y))(many)
    torch.testing.assert_close(together, torch.stack([OBJECTIVES["macro_f1"](o, y) for o in many]))


def test_the_direction_is_said():
    out, y = torch.randn(8, 3), torch.randint(0, 3, (8,))
    assert float(Score("accuracy", None)(out, y)) == -float(OBJECTIVES["accuracy"](out, y))
    assert float(Score("accuracy", False)(out, y)) == float(OBJECTIVES["accuracy"](out, y))
    assert float(Score(lambda o, t: 2.5, True)(out, y)) == -2.5
    with pytest.raises(UserError, match="maximize: found None, but objective is a function. Allowed: true or false"):
        Score(lambda o, t: 2.5, None)
    with pytest.raises(UserError, match="unknown objective 'accurracy'. Did you mean 'accuracy'"):
        Score("accurracy", None)
