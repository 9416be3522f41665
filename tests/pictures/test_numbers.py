"""Pictures of runs that give numbers: what is drawn is what was predicted."""

import numpy as np
import pytest
import torch
from torch import nn

import bpfree
from bpfree.pictures.numbers import NumberPredictions, Rollout, predict_numbers, rollout
from tests.lab.test_report import text, titles
from tests.test_cli import shell

SMALL = {"name": "lorenz", "windows": 40, "test_windows": 6, "steps": 24}
NET = {"name": "gru", "hidden": [8], "each_step": True}


def lines(axes):
    return [np.array(line.get_xydata()) for line in axes.lines]


@pytest.fixture(scope="module")
def patients(tmp_path_factory):
    place = tmp_path_factory.mktemp("patients") / "run"
    return bpfree.fit("mlp", "diabetes", "dfa", epochs=2, task="regress", out=place)


@pytest.fixture(scope="module")
def windows(tmp_path_factory):
    place = tmp_path_factory.mktemp("windows") / "run"
    return bpfree.fit(NET, SMALL, "mono_forward", epochs=1, task="sequence", batch_size=16, out=place)


def test_dots_are_predictions_in_the_units_of_the_data(patients):
    answers = predict_numbers(patients, patients.test)
    (axes,) = answers.figure(answers.shown).axes
    line, dots = lines(axes)
    assert np.array_equal(dots[:, 0], patients.test.y.numpy())
    assert np.array_equal(dots[:, 1], patients.predict(patients.test.x).numpy())
    assert np.array_equal(line[:, 0], line[:, 1])


def test_a_panel_for_each_number():
    rng = np.random.default_rng(0)
    x, y = rng.random((60, 4), dtype=np.float32), rng.random((60, 2), dtype=np.float32)
    run = bpfree.fit("mlp", (x, y), "backprop", epochs=1, task="regress", test=(x, y))
    answers = predict_numbers(run, run.test)
    panels = answers.figure(answers.shown).axes
    assert [axes.get_xlabel() for axes in panels] == ["true value of number 0", "true value of number 1"]
    assert np.array_equal(lines(panels[1])[1][:, 0], y[:, 1])


def test_curves_are_what_the_metrics_are_of(windows):
    three = windows.test.take(torch.arange(3))
    shown = rollout(windows, windows.test)
    assert torch.equal(shown.truth, three.y)
    assert shown.predicted.shape == (3, 19, 3), "24 steps: the first prediction comes after 6 steps were read"
    metrics = windows.evaluate((three.x, three.y))
    assert float(shown.valid.double().mean()) * windows.task.time_step == pytest.approx(metrics["valid_time"])
    squares = (shown.predicted - three.y[:, 5:]).double().square()
    assert float(squares.mean().sqrt()) == pytest.approx(metrics["rollout"], rel=1e-5)


def test_a_panel_has_truth_and_prediction_at_their_steps(windows):
    shown = rollout(windows, windows.test)
    panels = shown.figure([1]).axes
    assert len(panels) == 3
    truth, predicted, alone, valid = lines(panels[2])
    assert np.array_equal(truth[:, 1], shown.truth[1, :, 2].numpy())
    assert np.array_equal(truth[:, 0], np.arange(1, 25))
    assert np.array_equal(predicted[:, 1], shown.predicted[1, :, 2].numpy())
    assert np.array_equal(predicted[:, 0], np.arange(6, 25))
    assert (alone[0, 0], valid[0, 0]) == (5, 5 + int(shown.valid[1]))


class OneStep(nn.Linear):
    """A net without a state, which cannot go on by itself."""


def test_of_a_net_that_cannot_go_on_its_next_steps_are_shown():
    net = nn.Sequential(OneStep(3, 3))
    run = bpfree.fit(net, SMALL, "backprop", epochs=1, task="sequence", batch_size=16)
    shown = rollout(run, run.test)
    assert shown.valid is None
    assert torch.equal(shown.predicted, run.predict(run.test.x[:3]))
    truth, predicted = lines(shown.figure([0]).axes[0])
    assert np.array_equal(truth[:, 0], predicted[:, 0])


def test_what_is_far_off_leaves_the_panel():
    truth, predicted = torch.linspace(0, 1, 8).view(1, 8, 1), torch.tensor([0.1, 1e30, float("nan")]).view(1, 3, 1)
    (axes,) = Rollout(truth, predicted, torch.tensor([1])).figure([0]).axes
    assert axes.get_ylim() == (-0.25, 1.25)
    (axes,) = NumberPredictions(torch.full((4, 1), float("nan")), torch.ones(4, 1)).figure([0]).axes
    assert axes.get_ylim() == (0, 2), "also where all are alike"


def test_reports_and_plots_have_them(patients, windows):
    for run, picture, title, note in (
        (patients, "predicted", "Predicted and true", "Each dot is one of 88 test samples"),
        (
            windows,
            "rollout",
            "Predictions and truth",
            "The first 3 test samples. The net reads the beginning of a window",
        ),
    ):
        assert (run.folder / "plots" / f"{picture}.png").exists()
        drawn = shell("plots", run.folder).stdout.splitlines()
        assert drawn == [str(run.folder / "plots" / f"{name}.png") for name in ("training", picture)]
        path = bpfree.report(run.folder)
        assert titles(path) == ["Result", "Learning curves", title, "Cost", "Run it again"]
        assert note in text(path)
