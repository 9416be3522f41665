"""The autoencoder as a transformer, on the digits."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from torch import nn

from bpfree.errors import UserError
from bpfree.sklearn import BPFreeAutoencoder

NET = {"name": "mlp", "hidden": [64, 6, 64]}


@pytest.fixture(scope="module")
def digits():
    bunch = load_digits(as_frame=True)
    return bunch.data / 16, bunch.target


@pytest.fixture(scope="module")
def model(digits):
    optimizer = {"name": "adam", "lr": 0.005}
    return BPFreeAutoencoder("backprop", net=NET, epochs=10, optimizer=optimizer, random_state=0).fit(digits[0])


def test_the_code_is_what_rebuilds_the_samples(digits, model):
    x, _ = digits
    codes = model.transform(x)
    assert codes.shape == (len(x), 6)
    assert model.code_layer_ == "fc2"
    rebuilt = model.inverse_transform(codes)
    assert np.allclose(rebuilt, model.run_.predict(x.to_numpy()).numpy(), atol=1e-6)
    error = np.square(rebuilt - x.to_numpy()).mean()
    assert error < 0.6 * x.to_numpy().var(0).mean()  # better than the mean sample
    assert model.score(x) == pytest.approx(-error, rel=1e-5)
    # A code of another sample rebuilds that one: the net's own code is not used.
    assert np.allclose(model.inverse_transform(codes[::-1]), rebuilt[::-1], atol=1e-6)


def test_rows_of_weight_zero_do_not_count_in_the_score(digits, model):
    x, _ = digits
    weights = np.arange(len(x)) < 100
    assert model.score(x, sample_weight=weights) == pytest.approx(model.score(x[:100]), rel=1e-5)


def test_codes_feed_a_classifier_and_keep_names(digits, model):
    x, y = (part[:600] for part in digits)
    pipeline = make_pipeline(model, LogisticRegression(max_iter=300, tol=0.01))
    assert pipeline.fit(x, y).score(x, y) > 0.6
    frame = model.set_output(transform="pandas").transform(x)
    model.set_output(transform="default")
    assert list(frame) == [f"bpfreeautoencoder{i}" for i in range(6)] == model.get_feature_names_out().tolist()
    assert model.feature_names_in_[0] == "pixel_0_0"


def test_a_search_prefers_wider_codes(digits):
    x, _ = digits
    model = BPFreeAutoencoder("backprop", epochs=10, optimizer={"name": "adam", "lr": 0.005}, random_state=0)
    search = GridSearchCV(model, {"net__hidden": [[64, 1, 64], [64, 32, 64]]}, cv=2)
    assert search.fit(x[:300]).best_params_ == {"net__hidden": [64, 32, 64]}


def test_a_code_may_be_any_module_of_an_own_net(digits):
    x, _ = digits
    net = nn.Sequential(nn.Linear(64, 20), nn.Tanh(), nn.Linear(20, 64))
    model = BPFreeAutoencoder("backprop", net=net, code="1", epochs=1, random_state=0).fit(x)
    codes = model.transform(x)
    assert np.abs(codes).max() <= 1
    assert np.allclose(model.inverse_transform(codes), model.run_.predict(x.to_numpy()).numpy(), atol=1e-6)
    with pytest.raises(UserError, match="unknown module in code 'fc9'"):
        BPFreeAutoencoder(net=net, code="fc9", epochs=1).fit(x)
    with pytest.raises(UserError, match="code: found None, but no such layer"):
        BPFreeAutoencoder("backprop", net=nn.Linear(64, 64), epochs=1).fit(x)
    with pytest.raises(UserError, match="found codes of 3 values, allowed: 20"):
        model.inverse_transform(codes[:, :3])


def test_images_are_rebuilt_as_images(digits):
    x, _ = digits
    images = (x.to_numpy() * 255).astype(np.uint8).reshape(-1, 1, 8, 8)
    model = BPFreeAutoencoder("backprop", net=NET, epochs=2, random_state=0).fit(images)
    rebuilt = model.inverse_transform(model.transform(images))
    assert rebuilt.shape == images.shape
    assert model.score(images) == pytest.approx(-np.square(rebuilt - images / 255).mean(), rel=1e-4)


def test_passes_and_weights(digits):
    x, _ = digits
    weights = np.random.default_rng(0).integers(0, 3, len(x))
    model = BPFreeAutoencoder(net=NET, random_state=0)
    for _ in range(2):
        model.partial_fit(x, sample_weight=weights)
    copied = BPFreeAutoencoder(net=NET, random_state=0)
    for _ in range(2):
        copied.partial_fit(x.iloc[np.arange(len(x)).repeat(weights)])
    assert (model.transform(x) == copied.transform(x)).all()
