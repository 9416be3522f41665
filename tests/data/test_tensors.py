"""Samples and labels of every type: converted, or refused with the type that was found and the cure."""

import numpy as np
import pytest
import torch
from torch import nn

import bpfree
from bpfree.data import make_dataset
from bpfree.data.tensors import channels_first, to_tensor
from bpfree.errors import UserError

X, Y = np.arange(24).reshape(8, 3), np.arange(8) % 2


@pytest.mark.parametrize(
    "kind",
    ["uint16", "uint32", "uint64", "int8", "int16", "bool", "float16", "float64", "longdouble", ">f4", ">i8", "<u2"],
)
def test_numbers_of_every_type_keep_their_values(kind):
    values = X.astype(kind)
    assert to_tensor(values, "x").double().tolist() == values.astype(float).tolist()
    assert make_dataset((values, Y)).train.x.shape == (8, 3)


@pytest.mark.parametrize("kind", [torch.uint16, torch.uint32, torch.uint64, torch.bfloat16, torch.float8_e4m3fn])
def test_tensors_of_every_type_keep_their_values(kind):
    values = torch.tensor([[0.0, 1], [2, 3]]).to(kind)
    assert to_tensor(values, "x").double().tolist() == [[0, 1], [2, 3]]


def test_lists_tables_and_tensors_that_want_a_gradient():
    assert to_tensor([torch.ones(2, requires_grad=True), torch.zeros(2)], "x").tolist() == [[1, 1], [0, 0]]


class Table:
    """As a table of pandas, which gives its values by `__array__`."""

    def __init__(self, values):
        self.values = np.array(values)
        self.shape = self.values.shape

    def __array__(self, dtype=None, copy=None):
        return self.values


def test_tables():
    assert to_tensor(Table([[1, 0.5], [2, 1]]), "x").tolist() == [[1, 0.5], [2, 1]]
    data = make_dataset(((Table([[1], [2]] * 2), Table([[1.5], [2]] * 2)), [0, 1] * 2))
    assert [x.tolist() for x in data.train.x] == [[[1], [2]] * 2, [[1.5], [2]] * 2]
    with pytest.raises(UserError, match=r"found Table of object \(int, str\).*columns of numbers"):
        to_tensor(Table(np.array([[1, "x"]], dtype=object)), "x")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (X.astype(complex), "found complex128, allowed: an array or tensor of numbers.*real and imaginary"),
        (torch.zeros(2, 2, dtype=torch.complex64), "found torch.complex64.*view_as_real"),
        (torch.eye(3).to_sparse(), r"a sparse tensor.*x.to_dense\(\)"),
        (torch.zeros(2, device="meta"), "'meta', which has no values"),
        (np.array([["a", "b"]]), "found <U1.*numpy.unique"),
        (["cat", "dog"], "found list of <U3.*class numbers"),
        (np.array([[1, "a"]], dtype=object), r"found object \(int, str\).*x.astype\('float32'\)"),
        ([[1, 2], [3]], "found list .*one length"),
        (np.array(["2024-01-01"], dtype="datetime64[s]"), "found datetime64.*Turn times into numbers"),
        (np.zeros(2, dtype=[("a", "f4")]), r"found \[\('a'"),
        (np.ma.masked_array([1.0, 2], [False, True]), r"a masked array, of which 1 values are masked.*x.filled\(0\)"),
        ([np.ma.masked_array([1.0, 2], [False, True])], "1 values are masked"),
        (np.array([2**63], dtype=np.uint64), "uint64 with the value 9223372036854775808"),
        ([torch.zeros(2), torch.zeros(3)], "found tensors that differ.*one shape"),
        (None, "found NoneType of object"),
        ({1, 2}, "found set of object"),
    ],
)
def test_what_is_not_numbers(values, message):
    with pytest.raises(UserError, match=message) as caught:
        to_tensor(values, "x")
    assert "\n" not in str(caught.value)


def test_scipy_sparse_matrices():
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(UserError, match=r"a sparse matrix \(csr_matrix\).*x.toarray\(\)"):
        make_dataset((sparse.csr_matrix(np.eye(4)), Y[:4]))


def test_a_masked_array_without_masked_values_is_an_array():
    assert to_tensor(np.ma.masked_array([1.0, 2]), "x").tolist() == [1, 2]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((np.zeros((4, 0)), Y[:4]), r"found samples of shape \[0\], which hold no values"),
        ((np.zeros((4, 1, 0, 8), np.uint8), Y[:4]), r"found samples of shape \[1, 0, 8\], which hold no values"),
        ((np.zeros((4, 2)), np.array(1)), r"data \(labels\): found a single number"),
        ((np.array(1.0), Y[:4]), r"data \(samples\): found a single number"),
        (
            (X, np.array([0, 1e30] * 4)),
            r"found torch.float32 with the label 1e\+30, allowed: class numbers below 16,777,216",
        ),
        ((X, np.array([0, 1e30, 2e30, 0] * 2)), r"the label 2e\+30"),
        ((X, np.array([0, np.inf] * 4)), "with the label inf"),
        ((X, np.array([0, np.nan] * 4)), "with fractions"),
        ((X, np.array([0, 16777217.0] * 4)), "with the label"),
        ((X, Y.astype(complex)), r"data \(labels\): found complex128"),
    ],
)
def test_samples_and_labels_that_cannot_work(data, message):
    with pytest.raises(UserError, match=message):
        make_dataset(data)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_bytes_with_channels_last_are_images_with_channels_first(channels):
    x = np.random.default_rng(0).integers(0, 256, (20, 8, 9, channels), dtype=np.uint8)
    data = make_dataset((x, np.arange(20) % 2))
    assert torch.equal(data.train.x, torch.from_numpy(x).permute(0, 3, 1, 2))
    assert channels_first(data.train.x) is data.train.x
    net = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.Flatten(), nn.Linear(4 * 6 * 7, 2))
    run = bpfree.fit(net, (x, np.arange(20) % 2), "backprop", epochs=1, batch_size=8)
    assert len(run.preprocess.mean) == channels
    for same in (x, x.astype(float), torch.from_numpy(x).permute(0, 3, 1, 2)):
        assert torch.equal(run.scores(same), run.scores(x))
    assert run.evaluate((x.astype(np.float32), np.arange(20) % 2)) == run.evaluate((x, np.arange(20) % 2))


def test_grey_images_are_predicted_with_or_without_their_channel(digits_data):
    run = bpfree.fit("mlp", (digits_data.train.x, digits_data.train.y), "dfa", epochs=1)
    x = digits_data.test.x[:5]
    assert torch.equal(run.scores(x[:, 0]), run.scores(x))


class Looked(nn.Module):
    """A net without an nn.Embedding that looks rows up."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(24, 4))
        self.head = nn.Linear(12, 2)

    def forward(self, x):
        return self.head(self.table[x].flatten(1))


@pytest.mark.parametrize("kind", ["int64", "int32", "uint16"])
def test_integers_are_numbers_unless_the_net_takes_integers(kind):
    x = X.astype(kind)
    numbers = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    for net in (numbers, "mlp"):
        run = bpfree.fit(net, (x, Y), "backprop", epochs=2, batch_size=4, augment={"mixup": 0.2}, validation=0)
        assert run.preprocess.dtype == "float32"
        assert torch.equal(run.scores(x), run.scores(x.astype(float)))
    for tokens in (Looked(), nn.Sequential(nn.Embedding(24, 4), nn.Flatten(), nn.Linear(12, 2))):
        run = bpfree.fit(tokens, (x, Y), "backprop", epochs=1, batch_size=4)
        assert run.preprocess.has_tokens
        with pytest.raises(UserError, match="samples are torch.float32, allowed: integers"):
            run.predict(x.astype(float))


def test_a_run_on_integers_is_loaded_and_resumed(tmp_path):
    def fit(epochs, **more):
        return bpfree.fit("mlp", (X, Y), "backprop", epochs=epochs, batch_size=4, out=tmp_path / "run", **more)

    scores = fit(2).scores(X)
    assert torch.equal(bpfree.load(tmp_path / "run").scores(X), scores)


def test_a_class_that_is_not_in_training_is_cured_by_saying_how_many_there_are():
    net = nn.Sequential(nn.Linear(3, 10))
    with pytest.raises(UserError, match=r"classes=10"):
        bpfree.fit(net, (X, Y), "backprop", epochs=1, batch_size=4)
    assert bpfree.fit(net, (X, Y), "backprop", epochs=1, batch_size=4, classes=10).predict(X).shape == (8,)


def test_integers_are_rebuilt_as_numbers():
    run = bpfree.fit("mlp", X, "backprop", task="reconstruct", epochs=1, batch_size=4)
    assert run.predict(X).shape == (8, 3)
