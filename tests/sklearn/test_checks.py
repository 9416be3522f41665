"""scikit-learn's own checks of estimators, all of them. None is skipped or expected to fail."""

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from bpfree.sklearn import BPFreeAutoencoder, BPFreeClassifier, BPFreeRegressor

# Small nets and few epochs: the checks make several hundred fits.
SMALL = {"net": {"name": "mlp", "hidden": [24]}, "optimizer": {"name": "adam", "lr": 0.02}, "epochs": 8}


@parametrize_with_checks([BPFreeClassifier(**SMALL), BPFreeRegressor(**SMALL), BPFreeAutoencoder(epochs=2)])
def test_every_check_of_scikit_learn_passes(estimator, check):
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks([BPFreeClassifier(), BPFreeRegressor(), BPFreeAutoencoder()])
def test_every_check_passes_with_the_default_parameters(estimator, check):
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks(
    [BPFreeClassifier(rule, **SMALL) for rule in ("backprop", "mono_forward")]
    + [BPFreeRegressor("local", **SMALL), BPFreeAutoencoder("backprop", epochs=2)]
)
def test_every_check_passes_with_other_rules(estimator, check):
    check(estimator)
