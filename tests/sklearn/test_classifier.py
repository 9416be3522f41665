"""The classifier with scikit-learn's own tools, on its data sets."""

import pickle

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.ensemble import AdaBoostClassifier
from sklearn.inspection import permutation_importance
from sklearn.metrics import brier_score_loss
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

import bpfree
from bpfree.errors import DivergedError, UserError
from bpfree.rules import RULES
from bpfree.sklearn import BPFreeClassifier
from bpfree.trackers import Tracker
from tests.helpers import DiffusionRule, denoiser_for

SMALL = {"net": {"name": "mlp", "hidden": [32]}, "optimizer": {"name": "adam", "lr": 0.01}, "random_state": 0}


@pytest.fixture(scope="module")
def wine():
    x, y = load_wine(return_X_y=True, as_frame=True)
    return StandardScaler().set_output(transform="pandas").fit_transform(x), np.array(["red", "rosé", "white"])[y]


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    return train_test_split(x / 16, y, random_state=0, stratify=y)


@pytest.fixture(scope="module")
def fitted(wine):
    return BPFreeClassifier(**SMALL, epochs=10).fit(*wine)


def test_the_score_is_that_of_fit(digits):
    x, test_x, y, test_y = digits
    score = BPFreeClassifier(**SMALL, epochs=4).fit(x, y).score(test_x, test_y)
    options = {"optimizer": SMALL["optimizer"], "epochs": 4, "batch_size": 32, "validation": 0}
    run = bpfree.fit(SMALL["net"], (x, y), test=(test_x, test_y), **options)
    assert score == pytest.approx(run.result["test"]["accuracy"], abs=0.03)
    assert score > 0.9


def test_text_is_the_answer_where_labels_are_text(wine, fitted):
    x, y = wine
    assert fitted.classes_.tolist() == ["red", "rosé", "white"]
    assert fitted.score(x, y) > 0.97
    assert fitted.run_.predict_names(x.to_numpy()) == fitted.predict(x).tolist()
    assert (fitted.classes_[fitted.predict_proba(x).argmax(1)] == fitted.predict(x)).all()


@pytest.mark.parametrize("frame", [pd.DataFrame, pl.DataFrame])
def test_frames_keep_their_names(wine, fitted, frame):
    x, y = wine
    table = frame({name: x[name].to_numpy() for name in x})
    model = clone(fitted).fit(table, y)
    assert model.feature_names_in_.tolist() == list(x.columns)
    assert (model.predict_proba(table) == fitted.predict_proba(x)).all()
    with pytest.raises(ValueError, match="feature names"):
        model.predict(frame({name: x[name].to_numpy() for name in reversed(x.columns)}))


def test_a_seed_gives_the_same_bits_twice_and_other_seeds_other_bits(wine, fitted):
    x, y = wine
    first = fitted.predict_proba(x)
    assert (clone(fitted).fit(x, y).predict_proba(x) == first).all()
    assert (clone(fitted).set_params(random_state=1).fit(x, y).predict_proba(x) != first).any()
    by_state = [clone(fitted).set_params(random_state=np.random.RandomState(7)).fit(x, y) for _ in range(2)]
    assert (by_state[0].predict_proba(x) == by_state[1].predict_proba(x)).all()


def test_the_order_of_the_rows_has_no_effect(wine, fitted):
    x, y = wine
    order = np.random.default_rng(0).permutation(len(x))
    assert (clone(fitted).fit(x.iloc[order], y[order]).predict_proba(x) == fitted.predict_proba(x)).all()


@pytest.mark.parametrize("rule", ["backprop", "forward_forward", "mono_forward", "softhebb", "es"])
def test_whole_weights_are_repetition_for_every_kind_of_rule(wine, rule):
    x, y = wine
    weights = np.random.default_rng(0).integers(0, 4, len(x))
    model = BPFreeClassifier(rule, **SMALL, epochs=1)
    by_weight = model.fit(x, y, sample_weight=weights).predict_proba(x)
    rows = np.arange(len(x)).repeat(weights)
    assert (by_weight == clone(model).fit(x.iloc[rows], y[rows]).predict_proba(x)).all()
    assert (by_weight != clone(model).fit(x, y).predict_proba(x)).any()


def test_weights_and_copies_are_split_alike_for_validation(wine):
    x, y = wine
    weights = np.random.default_rng(0).integers(1, 4, len(x))
    model = BPFreeClassifier(**SMALL, epochs=3, options={"validation": 0.25})
    by_weight = clone(model).fit(x, y, sample_weight=weights)
    rows = np.arange(len(x)).repeat(weights)
    copied = clone(model).fit(x.iloc[rows], y[rows])
    assert (by_weight.predict_proba(x) == copied.predict_proba(x)).all()
    assert by_weight.run_.metrics[-1]["validation"] == copied.run_.metrics[-1]["validation"]


def test_small_weights_let_a_class_be_seen_rarely(wine):
    """Each epoch draws anew. A class of tiny weight is never the answer, and equal fractions change nothing."""
    x, y = wine
    weights = np.where(y == "white", 1e-6, 0.3)
    model = BPFreeClassifier(**SMALL, epochs=10)
    assert "white" not in clone(model).fit(x, y, sample_weight=weights).predict(x)
    equal = clone(model).fit(x, y, sample_weight=np.full(len(x), 0.3))
    assert (equal.predict_proba(x) == clone(model).fit(x, y).predict_proba(x)).all()


def test_fractions_go_with_early_stopping_and_not_with_fewer_samples(wine):
    x, y = wine
    weights = np.random.default_rng(0).random(len(x))
    stopped = BPFreeClassifier(**SMALL, options={"validation": 0.25, "early_stopping": {"patience": 2}})
    stopped.fit(x, y, sample_weight=weights)
    assert stopped.n_iter_ < 50
    assert stopped.score(x, y) > 0.9
    fewer = BPFreeClassifier(**SMALL, options={"fraction": 0.5})
    with pytest.raises(UserError, match="options left 90 samples"):
        fewer.fit(x, y, sample_weight=weights)


def test_boosting_works_by_weights(wine):
    x, y = wine
    weak = BPFreeClassifier("dfa", net={"name": "mlp", "hidden": [2]}, epochs=2, random_state=0)
    boosted = AdaBoostClassifier(weak, n_estimators=8, random_state=0).fit(x.to_numpy(), y)
    assert boosted.score(x.to_numpy(), y) > weak.fit(x, y).score(x, y) + 0.1


@pytest.mark.slow  # each process imports everything
def test_a_search_in_two_processes_changes_rules_and_keys_of_parts(digits):
    x, test_x, y, test_y = digits
    model = make_pipeline(StandardScaler(), BPFreeClassifier(**SMALL, epochs=4))
    grid = {
        "bpfreeclassifier__rule": ["dfa", "mono_forward"],
        "bpfreeclassifier__optimizer__lr": [1e-5, 0.01],
    }
    search = GridSearchCV(model, grid, cv=2, n_jobs=2).fit(x[:300], y[:300])
    assert search.best_params_["bpfreeclassifier__optimizer__lr"] == 0.01
    assert search.score(test_x, test_y) > 0.8
    assert model[-1].optimizer == SMALL["optimizer"]  # a search leaves the model that it was given as it was


def test_cross_validation_and_calibration():
    x, y = load_breast_cancer(return_X_y=True)
    x = StandardScaler().fit_transform(x)
    model = BPFreeClassifier(**SMALL, epochs=5)
    assert cross_val_score(model, x, y, cv=2).mean() > 0.95
    calibrated = CalibratedClassifierCV(model, cv=2).fit(x[:400], y[:400])
    assert brier_score_loss(y[400:], calibrated.predict_proba(x[400:])[:, 1]) < 0.05


def test_permutation_importance_finds_the_feature_that_matters(wine, fitted):
    x, y = wine
    with_noise = x.assign(noise=np.random.default_rng(0).normal(size=len(x)))
    model = clone(fitted).fit(with_noise, y)
    importance = permutation_importance(model, with_noise, y, n_repeats=3, random_state=0).importances_mean
    assert importance[list(with_noise).index("proline")] > importance[-1] + 0.02


def test_partial_fit_goes_on_after_pickling_as_if_nothing_had_been(wine):
    x, y = wine
    model = BPFreeClassifier(**SMALL)
    for _ in range(3):
        model.partial_fit(x, y, classes=np.unique(y))
    copy = pickle.loads(pickle.dumps(model))
    for part in (model, copy):
        part.partial_fit(x[:100], y[:100], sample_weight=np.random.default_rng(0).random(100))
    assert (copy.predict_proba(x) == model.predict_proba(x)).all()
    assert copy.n_iter_ == 4
    state = copy.run_.trainer.optimizer.state
    assert {int(each["step"]) for each in state.values()} == {copy.run_.trainer.progress.step}


def test_many_passes_learn_what_a_fit_learns(wine):
    x, y = wine
    model = BPFreeClassifier(**SMALL)
    first = model.partial_fit(x, y, classes=np.unique(y)).score(x, y)
    for _ in range(9):
        model.partial_fit(x, y)
    assert model.score(x, y) > max(first, 0.97)


def test_partial_fit_may_see_a_class_late_but_not_a_stranger(wine):
    x, y = wine
    known = y != "white"
    model = BPFreeClassifier(**SMALL).partial_fit(x[known], y[known], classes=np.unique(y))
    assert model.predict_proba(x).shape == (len(x), 3)
    for _ in range(8):
        model.partial_fit(x, y)
    assert model.score(x, y) > 0.95
    with pytest.raises(UserError, match="found the class green, allowed: red, rosé, white"):
        model.partial_fit(x, np.full(len(x), "green"))
    with pytest.raises(UserError, match="allowed: those of the first call"):
        model.partial_fit(x, y, classes=["red", "white"])
    with pytest.raises(UserError, match="classes: none given"):
        BPFreeClassifier().partial_fit(x, y)


def test_partial_fit_refuses_a_schedule_and_weights_that_explode(wine):
    x, y = wine
    model = BPFreeClassifier(**SMALL, epochs=1, options={"schedule": "cosine"})
    for _ in range(2):
        with pytest.raises(UserError, match="found the schedule cosine, which ends with one call"):
            model.partial_fit(x, y, classes=np.unique(y))
        model.fit(x, y)
    wild = BPFreeClassifier("backprop", random_state=0, optimizer={"name": "sgd", "lr": 0.1})
    wild.partial_fit(x, y, classes=np.unique(y))
    wild.run_.trainer.optimizer.param_groups[0]["lr"] = 1e30
    with pytest.raises(DivergedError, match="not finite at step"):
        wild.partial_fit(x, y)


# The wines are no images.
@pytest.mark.parametrize(
    "rule", [n for n, rule in RULES.items() if "classify" in rule.tasks and rule.needs_net != "vit"]
)
def test_every_rule_is_an_estimator(wine, rule):
    x, y = (part[::3] for part in wine)
    is_denoiser = issubclass(RULES[rule], DiffusionRule)
    net = (
        {"name": "denoiser", **denoiser_for(rule), "width": 16}
        if is_denoiser
        else {"name": "mlp", "activation": "tanh"}
    )
    model = BPFreeClassifier(rule, net=net, epochs=1, random_state=0).fit(x, y)
    copy = pickle.loads(pickle.dumps(model))
    assert np.allclose(model.predict_proba(x).sum(1), 1, atol=1e-5)
    assert (copy.predict(x) == model.predict(x)).all()


def two_layers(shape, width):
    return nn.Sequential(nn.Linear(*shape, 16), nn.ReLU(), nn.Linear(16, width))


def test_a_module_and_a_function_are_nets(wine):
    x, y = wine
    module = two_layers((13,), 3)
    before = [p.detach().clone() for p in module.parameters()]
    for net in (module, two_layers):
        model = BPFreeClassifier("backprop", **SMALL | {"net": net}, epochs=10).fit(x, y)
        assert model.score(x, y) > 0.97
        first = model.predict_proba(x)
        assert (model.fit(x, y).predict_proba(x) == first).all()  # the second fit does not go on from the first
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


def test_a_rule_as_an_object_is_copied_for_each_fit(wine):
    x, y = wine
    rule = RULES["dfa"]()
    model = BPFreeClassifier(rule, **SMALL, epochs=2)
    first = model.fit(x, y).predict_proba(x)
    assert not rule.is_bound
    assert (model.fit(x, y).predict_proba(x) == first).all()
    assert (clone(model).set_params(rule="dfa").fit(x, y).predict_proba(x) == first).all()


def test_arrays_that_cannot_be_written_are_read(wine, fitted):
    """joblib gives large arrays to its processes in this form."""
    x, y = wine
    fixed = x.to_numpy(dtype=np.float32, copy=True)
    fixed.flags.writeable = False
    assert (BPFreeClassifier(**SMALL, epochs=10).fit(fixed, y).predict_proba(fixed) == fitted.predict_proba(x)).all()
    assert (fitted.predict(x[::-1]) == fitted.predict(x)[::-1]).all()


def test_images_go_to_convolutions(digits):
    x, test_x, y, test_y = digits
    images, test_images = ((part * 16).astype(np.uint8).reshape(-1, 1, 8, 8) for part in (x[:600], test_x))
    model = BPFreeClassifier("backprop", net={"name": "conv", "channels": [8]}, epochs=4, random_state=0)
    assert model.fit(images, y[:600]).score(test_images, test_y) > 0.8
    assert model.run_.preprocess.dtype == "uint8"


class Count(Tracker):
    epochs = 0

    def on_epoch(self, trainer, record):
        self.epochs += 1


def test_options_reach_fit(wine, capsys):
    x, y = wine
    count = Count()
    options = {
        "task": {"label_smoothing": 0.1},
        "trackers": [count, "cost"] if "cost" in bpfree.trackers.TRACKERS else [count],
        "clip": 1.0,
        "verbose": True,
    }
    model = BPFreeClassifier(**SMALL, epochs=3, options=options).fit(x, y)
    assert count.epochs == 3
    assert model.run_.task.label_smoothing == 0.1
    assert model.run_.trainer.clip == 1.0
    assert "epoch" in capsys.readouterr().err
    model.set_params(options={"loss": nn.functional.multi_margin_loss}, rule="backprop").fit(x, y)
    assert model.run_.task.user_loss is nn.functional.multi_margin_loss


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"rule": "dfaa"}, "unknown rule 'dfaa'"),
        ({"net": 3}, "net: found int, allowed"),
        ({"net": lambda shape, width: "mlp"}, "the function returned str, allowed: an nn.Module"),
        ({"options": 3}, "options: found 3, allowed: a mapping"),
        ({"options": {"batch_size": 8}}, "options: found 'batch_size', which an estimator sets by itself"),
        (
            {"options": {"task": "regress"}},
            "options: found the task 'regress', allowed: options of the task 'classify'",
        ),
        ({"options": {"learning_rate": 0.1}}, "learning_rate"),
        ({"epochs": 0}, "epochs"),
    ],
)
def test_wrong_parameters_are_named_when_fit_begins(wine, parameters, message):
    model = BPFreeClassifier(**parameters)
    with pytest.raises(UserError, match=message):
        model.fit(*wine)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (["a"] * 178, "sample_weight: found list, allowed: an array of numbers"),
        (np.ones(3), r"found the shape \[3\], allowed: \[178\]"),
        (np.full(178, -1.0), "negative"),
        (np.full(178, np.nan), "NaN"),
        (np.zeros(178), "all weights are zero"),
    ],
)
def test_wrong_weights_are_refused(wine, weights, message):
    with pytest.raises(UserError, match=message):
        BPFreeClassifier().fit(*wine, sample_weight=weights)


def test_only_one_class_is_refused(wine):
    x, y = wine
    with pytest.raises(UserError, match=r"only one class \(red\)"):
        BPFreeClassifier().fit(x, y, sample_weight=(y == "red").astype(float))
