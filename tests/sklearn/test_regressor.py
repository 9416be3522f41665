"""The regressor with scikit-learn's own tools, on the diabetes data."""

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import load_diabetes
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import bpfree
from bpfree.errors import UserError
from bpfree.sklearn import BPFreeRegressor

SMALL = {"net": {"name": "mlp", "hidden": [32]}, "optimizer": {"name": "adam", "lr": 0.01}, "random_state": 0}


@pytest.fixture(scope="module")
def diabetes():
    x, y = load_diabetes(return_X_y=True, as_frame=True)
    x = StandardScaler().set_output(transform="pandas").fit_transform(x)
    return train_test_split(x, y, random_state=0)


def test_the_score_is_that_of_fit(diabetes):
    x, test_x, y, test_y = diabetes
    model = BPFreeRegressor(**SMALL, epochs=10).fit(x, y)
    score = model.score(test_x, test_y)
    run = bpfree.fit(
        SMALL["net"],
        (x.to_numpy(), y.to_numpy()),
        test=(test_x.to_numpy(), test_y.to_numpy()),
        task="regress",
        optimizer=SMALL["optimizer"],
        epochs=10,
        batch_size=32,
        validation=0,
    )
    assert score == pytest.approx(run.result["test"]["r2"], abs=0.06)
    assert score > 0.3
    assert model.feature_names_in_.tolist() == list(x.columns)
    assert model.predict(test_x).mean() == pytest.approx(test_y.mean(), rel=0.1)  # in the units of y


@pytest.mark.parametrize("rule", ["dfa", "local", "es"])
def test_whole_weights_are_repetition(diabetes, rule):
    x, test_x, y, _ = diabetes
    weights = np.random.default_rng(0).integers(0, 4, len(x))
    model = BPFreeRegressor(rule, **SMALL, epochs=1)
    by_weight = clone(model).fit(x, y, sample_weight=weights)
    rows = np.arange(len(x)).repeat(weights)
    assert (by_weight.predict(test_x) == clone(model).fit(x.iloc[rows], y.iloc[rows]).predict(test_x)).all()
    assert (by_weight.predict(test_x) != clone(model).fit(x, y).predict(test_x)).any()


def test_several_numbers_at_once(diabetes):
    x, test_x, y, test_y = diabetes
    both, test_both = (np.column_stack([part, -2 * part + 7]) for part in (y, test_y))
    model = BPFreeRegressor(**SMALL, epochs=10).fit(x, both)
    answers = model.predict(test_x)
    assert answers.shape == test_both.shape
    assert r2_score(test_both, answers, multioutput="raw_values").min() > 0.3


def test_pipelines_searches_and_transformed_targets(diabetes):
    x, test_x, y, test_y = diabetes
    pipeline = make_pipeline(StandardScaler(), BPFreeRegressor(**SMALL, epochs=5))
    search = GridSearchCV(pipeline, {"bpfreeregressor__net__hidden": [[1], [32]]}, cv=2).fit(x, y)
    assert search.best_params_ == {"bpfreeregressor__net__hidden": [32]}
    assert cross_val_score(pipeline, x, y, cv=2).mean() > 0.2
    by_log = TransformedTargetRegressor(pipeline, func=np.log, inverse_func=np.exp).fit(x, y)
    assert by_log.score(test_x, test_y) > 0.2


def test_passes_go_on_from_a_pickle(diabetes):
    x, test_x, y, _ = diabetes
    model = BPFreeRegressor(**SMALL).partial_fit(x, y)
    copy = pickle.loads(pickle.dumps(model)).partial_fit(x, y)
    before = model.predict(test_x)
    assert (copy.predict(test_x) == model.partial_fit(x, y).predict(test_x)).all()
    assert (model.predict(test_x) != before).any()


def test_a_rule_that_learns_classes_alone_is_refused(diabetes):
    x, _, y, _ = diabetes
    with pytest.raises(UserError, match="so it cannot regress"):
        BPFreeRegressor("forward_forward").fit(x, y)


def test_a_loss_by_name_and_one_of_the_users(diabetes):
    x, _, y, _ = diabetes
    named = BPFreeRegressor(**SMALL, epochs=2, options={"loss": "mae"}).fit(x, y)
    own = BPFreeRegressor(**SMALL, epochs=2, options={"loss": lambda out, y: (out - y).abs().mean()}).fit(x, y)
    assert np.allclose(named.predict(x), own.predict(x), rtol=1e-4)
