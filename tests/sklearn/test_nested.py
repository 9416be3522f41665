"""Parameters within parameters, as searches set them."""

import pytest
from sklearn.base import clone

from bpfree.errors import UserError
from bpfree.rules import RULES
from bpfree.sklearn import BPFreeAutoencoder, BPFreeClassifier


def test_keys_are_set_and_read_back():
    model = BPFreeClassifier().set_params(
        rule="mono_forward", optimizer__lr=0.1, net__hidden=[8], options__clip=1.0, epochs=3
    )
    assert model.optimizer == {"name": "adam", "lr": 0.1}
    assert model.net == {"name": "mlp", "hidden": [8]}
    assert model.options == {"clip": 1.0}
    assert model.get_params()["net__hidden"] == [8]
    assert "net__hidden" not in model.get_params(deep=False)
    copy = clone(model)
    assert copy.get_params() == model.get_params()
    assert copy.set_params(**model.get_params()).get_params() == model.get_params()


def test_a_name_and_its_keys_may_be_set_together():
    """A search sets all parameters of a candidate in one call, in any order."""
    model = BPFreeClassifier(optimizer={"name": "adam", "lr": 1.0}).set_params(optimizer__momentum=0.9, optimizer="sgd")
    assert model.optimizer == {"name": "sgd", "momentum": 0.9}


def test_a_mapping_of_the_user_is_never_changed():
    options = {"clip": 1.0}
    BPFreeClassifier(options=options).set_params(options__clip=2.0)
    assert options == {"clip": 1.0}


def test_the_default_net_of_an_autoencoder_is_an_mlp():
    assert BPFreeAutoencoder().set_params(net__hidden=[9]).net == {"name": "mlp", "hidden": [9]}


def test_keys_of_objects_and_unknown_parameters_are_refused():
    with pytest.raises(UserError, match=r"rule__feedback: found 'x', but rule is an object \(DFA\)"):
        BPFreeClassifier(RULES["dfa"]()).set_params(rule__feedback="x")
    with pytest.raises(ValueError, match="Invalid parameter 'lr'"):
        BPFreeClassifier().set_params(lr=1)
