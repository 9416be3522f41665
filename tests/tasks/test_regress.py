"""Numbers in place of classes: units, figures of a split, and what is refused."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score, root_mean_squared_error
from torch.nn import functional as F

import bpfree
from bpfree import Batch, Noise, UserError
from bpfree.api import resume
from bpfree.data import DATASETS, Dataset, Labels, Preprocess, Split
from bpfree.nets import NETS
from bpfree.rules import RULES
from bpfree.tasks import Regress
from bpfree.tasks.regress import LOSSES, Fit
from tests.helpers import autograd_of, bound, same, zero_grad
from tests.runs.test_run import power_cut, weights
from tests.test_cli import refused, shell

ADAM = {"name": "adam", "lr": 5e-3}


@pytest.fixture(scope="module")
def patients(tmp_path_factory):
    return DATASETS["diabetes"](tmp_path_factory.mktemp("unused"))


def task_of(y):
    return Regress.of(
        Preprocess.of(
            Dataset("mine", Split(torch.zeros(len(y), 2), y), None, Labels(0)), Split(torch.zeros(len(y), 2), y)
        )
    )


@pytest.mark.parametrize("shape", [(50,), (50, 1), (50, 3)])
def test_units_are_left_and_found_again(shape):
    y = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 40 + 150
    task = task_of(y)
    prepared = task.prepare(Split(torch.zeros(50, 2), y)).y
    torch.testing.assert_close(prepared.mean(0), torch.zeros(task.dim), atol=1e-5, rtol=0)
    torch.testing.assert_close(prepared.std(0, correction=0), torch.ones(task.dim))
    torch.testing.assert_close(task.decode(prepared), y)
    assert task.decode(prepared).shape == shape


def test_figures_of_a_split_are_those_of_scikit_learn():
    """In the units of the data, and of the whole split: batches of different sizes change nothing."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(70, 3, generator=generator).double() * torch.tensor([1.0, 20.0, 300.0]) + 7
    found = y + torch.randn(70, 3, generator=generator).double() * torch.tensor([0.5, 5.0, 200.0])
    task = task_of(y)
    fit = Fit(task)
    for rows in (slice(0, 50), slice(50, 70)):
        out, target = (task.prepare(Split(torch.zeros(20), t[rows])).y.double() for t in (found, y))
        fit.add(out, Batch(out, target))
    assert fit.metrics()["r2"] == pytest.approx(r2_score(y, found), abs=1e-5)
    squares = np.mean(np.square(root_mean_squared_error(y, found, multioutput="raw_values")))
    assert fit.metrics()["rmse"] == pytest.approx(squares**0.5, rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_is_in_standardised_units(loss):
    task = Regress([150.0], [40.0], loss=loss)
    out, y = torch.randn(9, 1), torch.randn(9, 1)
    expected = {"mse": F.mse_loss, "mae": F.l1_loss, "huber": F.huber_loss}[loss](out, y)
    torch.testing.assert_close(task.loss(out, Batch(out, y)), expected)


def test_other_units_are_the_same_problem(patients):
    x, y = patients.train
    runs = [bpfree.fit("mlp", (x, target), "backprop", epochs=5, task="regress") for target in (y, 1000 * y - 5)]
    a, b = (run.metrics[-1]["validation"] for run in runs)
    assert b["r2"] == pytest.approx(a["r2"], rel=1e-3)
    assert b["rmse"] == pytest.approx(1000 * a["rmse"], rel=1e-3)
    torch.testing.assert_close(runs[1].predict(x), 1000 * runs[0].predict(x) - 5, rtol=1e-3, atol=50)


def test_diabetes_is_442_patients_of_which_none_is_in_both_splits(patients):
    assert patients.train.x.shape == (354, 10)
    assert patients.test.x.shape == (88, 10)
    rows = {tuple(row) for row in patients.train.x.tolist()}
    assert not rows & {tuple(row) for row in patients.test.x.tolist()}
    torch.testing.assert_close(patients.train.x.std(0), torch.ones(10))
    assert (patients.train.y.min(), patients.train.y.max()) == (25, 346)
    assert patients.classes == 0


def test_diabetes_is_learned_as_far_as_it_can_be(patients):
    """Least squares reaches r2 0.48 on this split; a line is what ten numbers of 354 patients give."""
    x, y = (torch.cat([t, torch.ones(len(t), 1)], 1) if t.dim() == 2 else t for t in patients.train)
    weights = torch.linalg.lstsq(x, y[:, None]).solution
    line = torch.cat([patients.test.x, torch.ones(88, 1)], 1) @ weights
    run = bpfree.fit({"name": "mlp", "hidden": [16]}, "diabetes", "dfa", epochs=30, task="regress", optimizer=ADAM)
    assert run.result["test"]["r2"] > r2_score(patients.test.y, line) - 0.08
    assert set(run.result["test"]) == {"loss", "rmse", "r2"}
    predicted = run.predict(patients.test.x)
    assert predicted.shape == (88,)
    assert run.result["test"]["rmse"] == pytest.approx(root_mean_squared_error(patients.test.y, predicted), rel=1e-4)
    assert run.evaluate(patients.test) == pytest.approx(run.result["test"], rel=1e-5)
    with pytest.raises(UserError, match="regress, has no classes"):
        run.predict_proba(patients.test.x)


def test_a_digit_as_a_number(digits_data):
    run = bpfree.fit("mlp", "digits", "mono_forward", epochs=10, task="regress")
    assert run.result["test"]["r2"] > 0.8
    assert (run.predict(digits_data.test.x).round() == digits_data.test.y).float().mean() > 0.5


def test_dfa_with_the_true_downstream_product_is_backprop(patients):
    torch.manual_seed(0)
    net = NETS["mlp"]((10,), 2, hidden=[8, 6], activation="relu").double()
    net.act1, net.act2 = torch.nn.Identity(), torch.nn.Identity()
    task = Regress([0.0, 0.0], [1.0, 1.0], loss="huber")
    batch = Batch(patients.train.x[:20].double(), torch.randn(20, 2).double())
    rule = bound(RULES["dfa"](), net, batch, task)
    rule.B1.copy_(net.fc3.weight.detach())
    rule.B0.copy_(net.fc3.weight.detach() @ net.fc2.weight.detach())
    zero_grad(net)
    rule.gradients(net, task, batch, Noise())
    for name, expected in autograd_of(task.loss(net(batch.x), batch), net).items():
        torch.testing.assert_close(net.get_parameter(name).grad, expected, rtol=1e-10, atol=1e-14)


def test_mono_forward_minimises_the_error_of_its_own_read_out(patients):
    torch.manual_seed(0)
    net = NETS["mlp"]((10,), 1, hidden=[8], activation="tanh").double()
    batch = Batch(patients.train.x[:20].double(), torch.randn(20, 1).double())
    rule = bound(RULES["mono_forward"](), net, batch, Regress())
    rule.gradients(net, Regress(), batch, Noise())
    loss = F.mse_loss(net.fc1(batch.x).tanh() @ rule.heads[0].weight.T, batch.y)
    torch.testing.assert_close(net.fc1.weight.grad, torch.autograd.grad(loss, net.fc1.weight)[0])
    with pytest.raises(UserError, match="read: found 'sum', but the task Regress has no classes"):
        bpfree.fit("mlp", "diabetes", {"name": "mono_forward", "read": "sum"}, epochs=1, task="regress")


def test_a_resumed_run_comes_to_the_same_bits_and_loads(patients, tmp_path, monkeypatch, undrawn, at_once):
    options = {"task": "regress", "epochs": 2, "batch_size": 32}
    whole = bpfree.fit("mlp", "diabetes", "mono_forward", out=tmp_path / "whole", **options)
    with power_cut(monkeypatch, 15, by_ctrl_c=True), pytest.raises(KeyboardInterrupt):
        bpfree.fit("mlp", "diabetes", "mono_forward", out=tmp_path / "torn", **options)
    resume(tmp_path / "torn")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "torn"))
    loaded = bpfree.load(tmp_path / "torn")
    assert torch.equal(loaded.predict(patients.test.x), whole.predict(patients.test.x))
    assert loaded.result["test"] == whole.result["test"]


def test_a_ridge_read_out_is_least_squares(patients):
    """Of the training patients, in standardised units, on what the net has at its end: here the measurements."""
    net = torch.nn.Linear(10, 1)
    options = {"epochs": 1, "task": "regress", "validation": 0, "readout": "ridge", "ridge": 1e-9}
    run = bpfree.fit(net, tuple(patients.train), "backprop", test=tuple(patients.test), **options)
    x, y = patients.train
    line = torch.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1)], 1), y[:, None]).solution
    expected = torch.cat([patients.test.x, torch.ones(88, 1)], 1) @ line
    torch.testing.assert_close(run.predict(patients.test.x), expected[:, 0], rtol=1e-3, atol=0.1)


def test_the_shell_tells_numbers(tmp_path, patients):
    folder = tmp_path / "run"
    result = shell("train", "diabetes/dfa", "train.epochs=2", "--out", folder)
    assert result.stdout.startswith("dfa on diabetes: test loss "), result.output
    assert "rmse" in result.stdout
    assert "r2" in json.loads(shell("eval", folder).stdout)
    np.save(tmp_path / "x.npy", patients.test.x[:2].numpy())
    lines = shell("predict", folder, tmp_path / "x.npy").stdout.splitlines()
    predicted = bpfree.load(folder).predict(patients.test.x[:2])
    assert [float(line.split("\t")[1]) for line in lines] == pytest.approx(predicted.tolist(), rel=1e-4)


def test_early_stopping_knows_that_errors_fall():
    stopping = bpfree.EarlyStopping("rmse", 1)
    assert stopping.score({"rmse": 1.0}) > stopping.score({"rmse": 2.0})
    assert bpfree.EarlyStopping("r2").score({"r2": 0.9}) > bpfree.EarlyStopping("r2").score({"r2": 0.1})
    stop = {"metric": "rmse", "patience": 1}
    run = bpfree.fit("mlp", "diabetes", "backprop", epochs=3, task="regress", early_stopping=stop)
    assert run.weights == "best"


@pytest.mark.parametrize(
    ("data", "task", "message"),
    [
        ((torch.randn(9, 3), torch.randn(9)), "classify", "with fractions, allowed: class numbers"),
        (
            (torch.randn(9, 3), torch.tensor([0.0, torch.nan] * 4 + [1.0])),
            "regress",
            "allowed: finite floating numbers",
        ),
        ((torch.randn(9, 4, 3), torch.randn(9, 4, 3)), "regress", "For numbers at each step use task=sequence"),
        ((torch.randn(9, 3), torch.randn(8)), "regress", "found 9 samples and 8 labels"),
        ("diabetes", "classify", "labels that are not classes, allowed: regress"),
        ("diabetes", "sequence", "found 'sequence' on samples"),
        ("lorenz", "classify", "labels that are not classes, allowed: regress"),
        ("lorenz", "regress", "found 'regress' on labels of shape"),
    ],
)
def test_data_that_do_not_fit_the_task_are_refused(data, task, message):
    with pytest.raises(UserError, match=message):
        bpfree.fit("mlp", data, "backprop", epochs=1, task=task)


def test_a_net_of_another_width_is_refused(patients):
    with pytest.raises(
        UserError, match=r"net: its output is \[64, 3\], but 1 numbers and a batch of 64 need \[64, 1\]"
    ):
        bpfree.fit(NETS["mlp"]((10,), 3), "diabetes", "dfa", epochs=1, task="regress")
    with pytest.raises(UserError, match=r"task.loss: found 'mse2', allowed: mse or mae or huber"):
        bpfree.fit("mlp", "diabetes", "dfa", epochs=1, task={"name": "regress", "loss": "mse2"})
    assert "cannot regress" in refused("train", "digits/drtp", "task=regress")
