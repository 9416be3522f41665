"""Tasks with more than one label a sample: several labels at once, and a class for each pixel."""

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, jaccard_score
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from typer.testing import CliRunner

import bpfree
from bpfree import Batch, Noise, Trainer, UserError
from bpfree.cli import app
from bpfree.local.heads.linear import PixelLinear, read_linear
from bpfree.rules import RULES
from bpfree.tasks import Multilabel, Segment
from bpfree.training.evaluation import evaluate_split
from tests.helpers import bound, optimizer_for_any_task, repeatable_rule, without_pictures

IGNORE = 255
TASKS = {"multilabel": "multilabel", "segment": {"name": "segment", "ignore_index": IGNORE}}
ABLE = [(name, task) for name, rule in RULES.items() for task in TASKS if task in rule.tasks]


def data(task, n=96):
    """Samples whose labels are easy to tell: signs of features, or brightness of pixels."""
    generator = torch.Generator().manual_seed(0)
    if task == "multilabel":
        x = torch.randn(n, 6, generator=generator)
        return x, (x[:, :3] > 0.2).long()
    x = torch.randn(n, 1, 8, 8, generator=generator)
    y = (x[:, 0] > 0).long() + (x[:, 0] > 1).long()
    y[:, 0, :3] = IGNORE
    return x, y


def net_for(task):
    torch.manual_seed(0)
    if task == "multilabel":
        return nn.Sequential(nn.Sequential(nn.Linear(6, 24), nn.Tanh()), nn.Sequential(nn.Linear(24, 16), nn.Tanh()),
                             nn.Linear(16, 3))  # fmt: skip
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 8, 1), nn.Tanh()),
        nn.Sequential(nn.Conv2d(8, 8, 1), nn.Tanh()),
        nn.Conv2d(8, 3, 1),
    )


@pytest.mark.parametrize(("name", "task"), ABLE)
def test_a_rule_that_can_do_the_task_learns_it(name, task):
    x, y = data(task)
    made = Multilabel(3) if task == "multilabel" else Segment(3, (8, 8), ignore_index=IGNORE)
    trainer = Trainer(net_for(task), repeatable_rule(name), made, optimizer_for_any_task(name, lr=1e-2))
    batch = Batch(x, y)
    before = evaluate_split(made, [batch], trainer.predict).metrics["loss"] if name != "cwcomp" else None
    for _ in range(12):
        trainer.step(batch)
    after = evaluate_split(made, [batch], trainer.predict).metrics
    assert before is None or after["loss"] < before
    assert np.isfinite(list(after.values())).all()


@pytest.mark.parametrize("task", TASKS)
def test_others_refuse_it(task):
    for name in set(RULES) - {name for name, able in ABLE if able == task}:
        with pytest.raises(UserError, match=f"rule '{name}' .* so it cannot ") as caught:
            bpfree.fit("mlp", data(task), name, task=TASKS[task])
        assert "\n" not in str(caught.value)


def test_binary_cross_entropy_and_f1_scores():
    task, out = Multilabel(4), torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    y = (out + torch.randn(30, 4, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    batches = [Batch(out[a:b], y[a:b]) for a, b in ((0, 7), (7, 30))]
    found = evaluate_split(task, batches, lambda x: x).metrics
    said = (out > 0).numpy()
    assert found["loss"] == pytest.approx(float(F.binary_cross_entropy_with_logits(out, y)))
    assert found["accuracy"] == pytest.approx(float((said == y.numpy()).mean()))
    for average in ("micro", "macro"):
        assert found[f"{average}_f1"] == pytest.approx(f1_score(y.numpy(), said, average=average))
    assert torch.equal(task.decode(out), out > 0)
    torch.testing.assert_close(task.probabilities(out), out.sigmoid())
    weighted = Multilabel(4, positive_weights=[1, 2, 3, 4])
    expected = F.binary_cross_entropy_with_logits(out, y, pos_weight=torch.tensor([1.0, 2, 3, 4]))
    torch.testing.assert_close(weighted.loss(out, Batch(out, y)), expected)


def test_pixels_that_do_not_count_do_not_count():
    task, generator = Segment(3, (5, 4), ignore_index=7), torch.Generator().manual_seed(0)
    out, y = torch.randn(6, 3, 5, 4, generator=generator), torch.randint(3, (6, 5, 4), generator=generator)
    y[:4, 1:] = 7
    y[5] = 7
    batches = [Batch(out[a:b], y[a:b]) for a, b in ((0, 1), (1, 5), (5, 6))]
    found, counts = evaluate_split(task, batches, lambda x: x).metrics, y != 7
    said = task.decode(out)
    assert found["loss"] == pytest.approx(float(F.cross_entropy(out, y, ignore_index=7)), rel=1e-6)
    assert found["accuracy"] == pytest.approx(float((said == y)[counts].float().mean()))
    assert found["mean_iou"] == pytest.approx(jaccard_score(y[counts], said[counts], average="macro"))
    target = task.target(Batch(out, y)).view(6, 3, 5, 4)
    assert torch.equal(target.sum(1), counts.float())
    assert torch.equal(target.argmax(1)[counts], y[counts])
    torch.testing.assert_close(task.probabilities(out.flatten(1)), out.softmax(1))
    assert float(task.loss(out[5:], Batch(out[5:], y[5:]))) == 0, "and not NaN"


def test_a_head_reads_each_pixel_and_brings_its_scores_to_the_labels():
    h, matrix = torch.randn(2, 5, 4, 6, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    by_pixel = F.linear(h.movedim(1, -1), matrix).movedim(-1, 1)
    torch.testing.assert_close(read_linear(h, matrix, (4, 6)), by_pixel)
    larger = F.interpolate(by_pixel, size=(8, 12), mode="bilinear", align_corners=False)
    torch.testing.assert_close(read_linear(h, matrix, (8, 12)), larger)
    head = PixelLinear(5, 3, (8, 12)).double()
    assert not head(h).any(), "it starts at zero"


def test_dfa_and_drtp_carry_the_error_and_the_target_of_all_pixels():
    x, y = data("segment", 8)
    task, batch = Segment(3, (8, 8), ignore_index=IGNORE), Batch(x.double(), y)
    for name in ("dfa", "drtp"):
        net = net_for("segment").double()
        rule = bound(RULES[name](), net, batch, task)
        rule.gradients(net, task, batch, Noise())
        out = net(batch.x).detach().requires_grad_()
        (error,) = torch.autograd.grad(task.loss(out, batch), out)
        signal = error.flatten(1) if name == "dfa" else -task.target(batch) / 8
        h = net[0](batch.x)
        (expected,) = torch.autograd.grad(h, net[0][0].weight, (signal @ rule.B0).view_as(h))
        torch.testing.assert_close(net[0][0].weight.grad, expected)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("form", ["tensors", "numpy", "dataset", "loader"])
def test_data_of_any_form_trains_and_a_run_predicts(task, form, tmp_path):
    x, y = data(task)
    given = {"tensors": (x, y), "numpy": (x.numpy(), y.numpy().astype(np.uint8)), "dataset": TensorDataset(x, y)}
    given["loader"] = DataLoader(TensorDataset(x, y.float() if task == "multilabel" else y), 16)
    train = given[form]
    own = net_for(task)
    folder = tmp_path / "run" if form == "tensors" else None
    run = bpfree.fit(own, train, "local", epochs=2, task=TASKS[task], test=(x, y), out=folder, trackers=["local_loss"])
    answers, shares = run.predict(x), run.predict_proba(x)
    if task == "multilabel":
        assert (answers.dtype, answers.shape, shares.shape) == (torch.bool, (96, 3), (96, 3))
        assert set(run.result["test"]) == {"loss", "accuracy", "micro_f1", "macro_f1"}
    else:
        assert (answers.dtype, answers.shape, shares.shape) == (torch.int64, (96, 8, 8), (96, 3, 8, 8))
        assert set(run.result["test"]) == {"loss", "accuracy", "mean_iou"}
    assert run.evaluate((x, y)) == run.result["test"]
    if folder is not None:
        loaded = bpfree.load(folder, net=net_for(task))
        assert torch.equal(loaded.predict(x), answers)
        assert loaded.evaluate((x, y)) == run.result["test"]
        assert (folder / "plots" / "training.png").exists()


@pytest.mark.parametrize("task", TASKS)
def test_the_shell_predicts(task, tmp_path):
    x, y = data(task, 32)
    with without_pictures():
        bpfree.fit("mlp", (x, y), "dfa", epochs=1, task=TASKS[task], out=tmp_path / "run")
    np.save(tmp_path / "x.npy", x[:2].numpy())
    told = CliRunner().invoke(app, ["predict", str(tmp_path / "run"), str(tmp_path / "x.npy")])
    assert told.exit_code == 0
    first = told.stdout.splitlines()[0].split("\t")[1:]
    assert all(cell == "-" or 0 <= float(cell.split()[1]) <= 1 for cell in first)
    if task == "segment":
        assert sum(float(cell.split()[1]) for cell in first) == pytest.approx(1, abs=1e-3)


X, Y = torch.randn(12, 4), torch.tensor([[0, 1, 1], [1, 0, 0]] * 6)
MAPS = torch.arange(12 * 16).view(12, 4, 4) % 3


@pytest.mark.parametrize(
    ("labels", "task", "message"),
    [
        (Y, "classify", r"rows of 3 values that are not shares .*Use|labels for each sample use task=\"multilabel\""),
        (Y.float(), "classify", 'For several labels for each sample use task="multilabel"'),
        (torch.full((12, 4), 0.25), "classify", "found shares of 4 classes, allowed: one class number"),
        (MAPS, "classify", 'For a class for each pixel use task="segment"'),
        (Y[:, 0], "multilabel", "For one class for each sample use task=classify"),
        (2 * Y, "multilabel", "found values from 0 to 2, allowed: 0 and 1"),
        (Y + 0.5, "multilabel", "with fractions, allowed: 0 or 1"),
        (Y, "segment", r"the shape \[12, 3\], allowed with task=segment: \[N, H, W\]"),
        (MAPS.where(MAPS < 2, 255), "segment", "If 255 means that a pixel does not count, set task"),
        (MAPS, {"name": "segment", "ignore_index": 0}, "but none is 0"),
        (torch.full_like(MAPS, 9), {"name": "segment", "ignore_index": 9}, "all pixels have the ignored label 9"),
    ],
)
def test_labels_that_are_not_what_the_task_is_for(labels, task, message):
    with pytest.raises(UserError, match=message) as caught:
        bpfree.fit("mlp", (X, labels), "dfa", task=task, epochs=1)
    assert "\n" not in str(caught.value)


def test_one_hot_rows_are_classes():
    y = torch.arange(12) % 3
    runs = [bpfree.fit("mlp", (X, labels), "dfa", epochs=1) for labels in (y, F.one_hot(y))]
    assert torch.equal(*(run.net.fc1.weight for run in runs))


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ("digits", {"task": "multilabel"}, "found 'multilabel' on labels of shape"),
        ("digits", {"task": "segment"}, "found 'segment' on labels of shape"),
        (
            (X, MAPS),
            {"task": "segment", "augment": {"flip": True}},
            "data.augment.flip: moves samples, but not the labels of their pixels",
        ),
        (
            (X, MAPS),
            {"task": "segment", "rule": "mono_forward"},
            "the task has a label for each pixel",
        ),
        ((X, Y), {"task": "multilabel", "readout": "ridge"}, "found 'ridge' for the task multilabel"),
        ((X, Y), {"task": "multilabel", "augment": {"mixup": 0.2}}, "data.augment.mixup: targets are"),
        ((X, Y), {"task": "multilabel", "trackers": ["segment_accuracy"]}, "needs one class for each sample"),
        (
            (X, Y),
            {"task": "multilabel", "rule": {"name": "es", "objective": "macro_f1"}},
            "found macro_f1, which",
        ),
        (
            (X, X[:, 0]),
            {"task": "regress", "rule": {"name": "es", "objective": "accuracy"}},
            "needs one class for each",
        ),
    ],
)
def test_options_that_need_one_class_a_sample(given, options, message):
    with pytest.raises(UserError, match=message):
        bpfree.fit("mlp", given, **{"rule": "dfa", "epochs": 1, **options})
