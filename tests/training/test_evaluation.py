"""Metrics of a whole split, against scikit-learn's."""

import json
import time
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn import metrics as reference

import bpfree
from bpfree import Batch, Trainer, UserError
from bpfree.lab.report.records import read_run
from bpfree.runs.config_file import load_config
from bpfree.tasks import TASKS, Classify
from bpfree.tasks.class_metrics import BY_CLASS, ClassCounts
from bpfree.training.evaluation import evaluate_split
from tests.test_cli import shell

C = 6


def draw(n=500, classes=C, seed=0, missing=()):
    """Scores and labels of classes of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(n, generator=generator) ** 3 * classes).long()
    labels = torch.where(torch.isin(labels, torch.tensor(missing)), 0, labels) if missing else labels
    scores = torch.randn(n, classes, generator=generator) + torch.nn.functional.one_hot(labels, classes)
    return scores, labels


def batches(scores, labels, size):
    return [Batch(x, y) for x, y in zip(scores.split(size), labels.split(size), strict=True)]


def judged(scores, labels, size=500, classes=C):
    return evaluate_split(Classify(classes), batches(scores, labels, size), lambda x: x)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("missing", [(), (2,), (2, 4)])
@pytest.mark.parametrize("seed", range(3))
def test_metrics_equal_those_of_scikit_learn(seed, missing):
    scores, labels = draw(seed=seed, missing=missing)
    found, said = judged(scores, labels, 64), scores.argmax(1)
    assert found.metrics["accuracy"] == pytest.approx(reference.accuracy_score(labels, said), abs=1e-6)
    expected = reference.balanced_accuracy_score(labels, said)
    assert found.metrics["balanced_accuracy"] == pytest.approx(expected, abs=1e-12)
    assert found.metrics["macro_f1"] == pytest.approx(reference.f1_score(labels, said, average="macro"), abs=1e-12)
    assert list(found.metrics) == ["loss", "accuracy", *BY_CLASS]
    by_class = found.classes.by_class()
    recalls = reference.recall_score(labels, said, average=None, labels=range(C), zero_division=np.nan)
    shares = [np.nan if share is None else share for share in by_class["accuracy"]]
    assert shares == pytest.approx(list(recalls), nan_ok=True)
    assert by_class["count"] == torch.bincount(labels, minlength=C).tolist()
    assert by_class["predicted"] == torch.bincount(said, minlength=C).tolist()
    json.dumps(by_class, allow_nan=False)


def test_how_a_split_is_cut_into_batches_is_of_no_account():
    scores, labels = draw()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    found = [judged(scores, labels, size) for size in (1, 7, 64, 500)] + [judged(scores[order], labels[order], 64)]
    for other in found[1:]:
        assert {k: other.metrics[k] for k in BY_CLASS} == {k: found[0].metrics[k] for k in BY_CLASS}
        assert other.classes.by_class() == found[0].classes.by_class()


def test_a_mean_over_batches_would_be_another_number():
    scores, labels = torch.eye(2)[torch.tensor([0, 0, 0, 0])], torch.tensor([0, 0, 0, 1])
    assert judged(scores, labels, 2, classes=2).metrics["balanced_accuracy"] == 0.5
    assert judged(scores, labels, 2, classes=2).metrics["macro_f1"] == pytest.approx((6 / 7 + 0) / 2)


def test_outputs_that_are_no_numbers_count_as_some_class():
    scores, labels = draw(20)
    counts = ClassCounts(C)
    counts.add(scores.fill_(float("nan")), Batch(scores, labels))
    assert sum(counts.by_class()["predicted"]) == 20


def test_the_formula_of_the_objective_is_the_same():
    from bpfree.population.score import OBJECTIVES

    scores, labels = draw(missing=(1,))
    expected = judged(scores, labels).metrics["macro_f1"]
    assert float(OBJECTIVES["macro_f1"](scores.double(), labels)) == pytest.approx(expected, abs=1e-12)


def test_many_classes_take_no_matrix():
    scores, labels = draw(50, 20_000)
    assert judged(scores, labels, classes=20_000).classes.table.numel() == 60_000


def test_a_task_without_classes_has_none(digits_data):
    x = digits_data.train.x[:100]
    run = bpfree.fit({"name": "mlp", "hidden": [8]}, x, "backprop", epochs=1, task="reconstruct", test=x)
    assert set(run.result["test"]) == {"loss"}
    assert "classes" not in run.result
    assert run.result["train_samples"] == {"count": 90}


@pytest.mark.parametrize("rule", ["backprop", "dfa", "mono_forward", "eggroll", "forward_forward"])
def test_results_have_them_for_test_and_validation(rule, tmp_path):
    run = bpfree.fit("mlp", "digits", rule, epochs=2, out=tmp_path / "run", skew={"factor": 10})
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    said = run.predict(run.test.x)
    assert result["test"]["balanced_accuracy"] == pytest.approx(
        reference.balanced_accuracy_score(run.test.y, said), abs=1e-12
    )
    assert result["test"]["macro_f1"] == pytest.approx(reference.f1_score(run.test.y, said, average="macro"))
    assert result["classes"]["count"] == torch.bincount(run.test.y).tolist()
    assert set(BY_CLASS) <= result["validation"].keys()
    assert all(set(BY_CLASS) <= record["validation"].keys() for record in run.metrics)
    assert bpfree.load(tmp_path / "run").evaluate((run.test.x, run.test.y)) == result["test"]


@pytest.mark.parametrize("metric", BY_CLASS)
def test_training_can_stop_by_them(metric):
    stop = {"metric": metric, "patience": 2}
    run = bpfree.fit("mlp", "digits", "dfa", epochs=30, early_stopping=stop, fraction=0.2, optimizer={"name": "sgd"})
    curve = [record["validation"][metric] for record in run.metrics]
    assert run.result["best_epoch"] == 1 + curve.index(max(curve))
    with pytest.raises(UserError, match=r"found 'f1', allowed: loss, accuracy, balanced_accuracy, macro_f1"):
        bpfree.fit("mlp", "digits", "dfa", epochs=1, early_stopping={"metric": "f1"})


def test_a_trainer_with_a_task_of_its_own_still_evaluates(digits_data):
    class Own:
        dim = 10

        def target(self, batch):
            return TASKS["classify"](10).target(batch)

        def loss(self, out, batch):
            return TASKS["classify"](10).loss(out, batch)

        def metrics(self, out, batch):
            return {"loss": self.loss(out.detach(), batch)}

    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    trainer = Trainer(net, "backprop", Own())
    x, y = digits_data.train.x[:64].float() / 16, digits_data.train.y[:64]
    trainer.step(Batch(x, y))
    found = evaluate_split(trainer.task, [Batch(x, y)], trainer.predict)
    assert (set(found.metrics), found.classes) == ({"loss"}, None)


def test_the_terminal_and_reports_tell_of_them_where_classes_differ_in_size(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = shell("train", "digits/dfa", "train.epochs=1", "--out", "plain")
    skewed = shell("train", "digits/dfa", "train.epochs=1", "data.skew.factor=100", "--out", "skewed")
    assert "test accuracy" in plain.output
    assert not any(name in plain.output for name in BY_CLASS)
    assert "balanced_accuracy" in skewed.output
    assert set(read_run(tmp_path / "plain").metrics("test")) == {"accuracy", "loss"}
    assert set(BY_CLASS) < set(read_run(tmp_path / "skewed").metrics("test"))


def test_counting_costs_next_to_nothing():
    """Under 2 % of an epoch of a small net, whose epochs are shortest."""
    run = bpfree.fit("mlp", "digits", "backprop", epochs=3)
    split = run.config.data.split(run.config.data.load(), 0)[1]
    ready = [(run.trainer.predict(batch.x), batch) for batch in run.batches(split).epoch()]

    def count():
        counts = ClassCounts(10)
        for out, batch in ready:
            counts.add(out, batch)
        counts.metrics()

    assert fastest(count) < 0.02 * min(later["seconds"] - record["seconds"] for record, later in pairwise(run.metrics))


def fastest(call):
    times = []
    for _ in range(30):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return min(times)


def test_a_search_may_go_by_them():
    from bpfree.lab.tune.plan import Metric, check

    for metric in BY_CLASS:
        check(load_config("digits/dfa"), Metric("validation", metric, "maximize"))
    refuse = partial(check, load_config("digits/dfa"))
    with pytest.raises(UserError, match="allowed: validation/accuracy, validation/loss, validation/balanced_accuracy"):
        refuse(Metric("validation", "f1", "maximize"))
