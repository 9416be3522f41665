"""What is shown inside a net is what the net computes."""

import pytest
import torch

from bpfree.pictures.trail import follow
from bpfree.serve.looks import Looks
from bpfree.trackers.depth import probe


@pytest.fixture
def looks(served):
    return {each.id: each.looks for each in served}


@pytest.fixture(scope="module")
def sample(digits_data):
    return digits_data.test.x[5:6]


@pytest.mark.parametrize(("name", "kind"), [("backprop", "probes"), ("mono_forward", "heads"), ("noprop_dt", "walk")])
def test_the_last_step_is_the_answer(looks, runs, sample, name, kind):
    assert looks[name].kind == kind
    steps = looks[name](sample, noise=False)
    expected = runs[name].predict_proba(sample)[0]
    assert torch.allclose(torch.tensor(steps[-1].answer.probabilities), expected, atol=1e-6)
    assert steps[-1].answer.index == int(expected.argmax())
    for step in steps:
        assert sum(step.answer.probabilities) == pytest.approx(1, abs=1e-5)


def test_the_walk_from_noise_is_that_of_the_pictures(looks, runs, digits_data):
    run = runs["noprop_dt"]
    trail = follow(run, digits_data.test.take(torch.tensor([5])), 1, stochastic=True)
    steps = looks["noprop_dt"](digits_data.test.x[5:6], noise=True)
    assert [step.name for step in steps] == ["start", "after block 1", "after block 2", "after block 3"]
    for step, z, out in zip(steps, trail.z[:, 0], trail.outputs[:, 0], strict=True):
        assert torch.allclose(torch.tensor(step.z), z, atol=1e-6)
        assert torch.allclose(torch.tensor(step.answer.probabilities), out.softmax(0), atol=1e-6)


def test_heads_are_those_of_the_rule(looks, runs, sample):
    run, rule = runs["mono_forward"], runs["mono_forward"].trainer.rule
    steps = looks["mono_forward"](sample, noise=False)
    assert [step.name for step in steps] == [*rule.taps, "answer"]
    for index, (tap, step) in enumerate(zip(rule.taps, steps, strict=False)):
        scores = rule.scores(index, output_of(run, tap, sample)).softmax(1)[0]
        assert torch.allclose(torch.tensor(step.answer.probabilities), scores, atol=1e-5)


def test_a_probe_reads_what_the_tracker_reads(looks, runs, sample):
    run, train = runs["backprop"], looks["backprop"].train
    target = torch.nn.functional.one_hot(train.y, 10).double()
    first = looks["backprop"](sample, noise=False)[0]
    shares = probe(output_of(run, first.name, train.x), target, output_of(run, first.name, sample)).clamp_min(0)[0]
    assert torch.allclose(torch.tensor(first.answer.probabilities).double(), shares / shares.sum(), atol=1e-4)


def output_of(run, tap, x):
    """The output of a submodule for raw samples, [N, H]."""
    found = []
    with run.net.get_submodule(tap).register_forward_hook(lambda module, args, h: found.append(h.flatten(1))):
        run.predict(x)
    return torch.cat(found)


def test_what_cannot_be_shown_is_said(looks, runs):
    assert looks["diabetes"].kind is None
    assert "does not predict classes" in looks["diabetes"].why
    assert "not at hand" in Looks(runs["backprop"], None).why
    assert looks["table"].kind == "probes"
