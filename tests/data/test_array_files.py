"""Arrays in files: what is read, and what is refused with the place of the fault."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import bpfree
from bpfree.data import DATASETS, make_dataset
from bpfree.data.files.rows import Rows
from bpfree.errors import UserError

N = 60
RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (N, 8, 8), dtype=np.uint8)
Y = np.arange(N) % 3
WORDS = np.array(["emu", "cat", "dog"])[Y]


def arrays(path, **options):
    return DATASETS["arrays"](path.parent, path=path, **options)


def write(folder, **values):
    folder.mkdir()
    for name, value in values.items():
        np.save(folder / f"{name}.npy", value)
    return folder


def test_an_npz(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=X, y=Y)
    data = arrays(tmp_path / "a.npz")
    assert (data.name, data.classes, data.class_names, tuple(data.train.x.shape)) == ("arrays", 3, None, (48, 1, 8, 8))
    assert data.test.y.bincount().tolist() == [4, 4, 4]
    rows = {bytes(x.numpy().tobytes()) for split in (data.train, data.test) for x in split.x}
    assert rows == {x.tobytes() for x in X}


def test_splits_by_their_names(tmp_path):
    values = {"x_train": X, "y_train": Y, "x_val": X[:9], "y_val": Y[:9], "x_test": X[:5], "y_test": Y[:5]}
    np.savez(tmp_path / "a.npz", **values)
    data = arrays(tmp_path / "a.npz")
    assert [len(split.y) for split in (data.train, data.validation, data.test)] == [60, 9, 5]
    with pytest.raises(UserError, match=r"data.test: found 0.1, but there is a test split already"):
        arrays(tmp_path / "a.npz", test=0.1)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (Y, None),
        (Y * 2 + 1, ("1", "3", "5")),
        (Y.astype(float), None),
        (Y - 1, ("-1", "0", "1")),
        (WORDS, ("cat", "dog", "emu")),
        (WORDS.astype("S"), ("cat", "dog", "emu")),
        (Y[:, None], None),
        (Y > 0, None),
        (np.where(Y == 0, 10, np.where(Y == 1, 9, 8)), ("8", "9", "10")),
    ],
    ids=range(9),
)
def test_labels_of_any_kind(tmp_path, labels, names):
    data = arrays(write(tmp_path / "in", x=X, y=labels), test=0)
    assert data.class_names == names
    known = np.unique(labels.reshape(-1))
    assert np.array_equal(known[data.train.y.numpy()], labels.reshape(-1))


def test_large_files_stay_where_they_are_and_give_the_same(tmp_path):
    for name, x in {"bytes": X, "floats": RNG.normal(size=(N, 5)).astype("f4"), "tokens": X.astype("i4")[:, 0]}.items():
        path = write(tmp_path / name, x=x, y=WORDS)
        first, second = arrays(path), arrays(path, memory_limit=0)
        assert isinstance(second.train.x, Rows)
        for split in ("train", "test"):
            ours, theirs = getattr(first, split), getattr(second, split)
            assert torch.equal(ours.x, theirs.x.load())
            assert torch.equal(ours.y, theirs.y)
    beside = arrays(tmp_path / "bytes" / "x.npy", labels=tmp_path / "bytes" / "y.npy", memory_limit=0)
    assert beside.class_names == ("cat", "dog", "emu")


def test_images_have_their_channels_first(tmp_path):
    x = RNG.integers(0, 256, (N, 6, 5, 3), dtype=np.uint8)
    path = write(tmp_path / "in", x=x, y=Y)
    assert torch.equal(arrays(path, test=0).train.x, torch.from_numpy(x).permute(0, 3, 1, 2))
    with pytest.raises(UserError, match=r"found images \[60, 6, 5, 3\], allowed from a file: \[N, C, H, W\]"):
        arrays(path, memory_limit=0)


def hole(x, row):
    values = x.astype(float)
    values[row] = np.nan
    return values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"x": X}, r"found x, allowed: x and y"),
        ({}, "found no arrays, allowed"),
        ({"x": X, "y": Y[:-1]}, "found 60 samples and 59 labels"),
        ({"x": X, "y": Y * 0}, "labels of 1 classes, allowed: of two or more"),
        ({"x": X, "y": np.stack([Y, Y], 1)}, r"y: found int64 \[60, 2\], allowed: labels"),
        ({"x": X, "y": hole(Y, 7)}, "y: found 1 of 60 labels that are missing, not integers or too large, number 7"),
        ({"x": X, "y": np.where(Y == 0, "", WORDS)}, "y: found 20 of 60 labels that are missing"),
        ({"x": X, "y": Y + 0.5}, "found 60 of 60 labels that are missing, not integers or too large, number 0"),
        ({"x": X[:0], "y": Y[:0]}, "in.*numpy can read|no labels"),
        ({"x": hole(X, 9), "y": Y}, "x: samples contain NaN or infinite values .1 of 60 do, the first is number 9"),
        ({"x": X.astype(complex), "y": Y}, "x: found complex128"),
        ({"x": WORDS, "y": Y}, "x: found <U3"),
        ({"x": X, "y": Y, "x_test": X[:3], "y_test": np.array([0, 1, 7])}, "y_test: found the label 7, allowed: those"),
        ({"x": X, "y": Y, "x_test": X[:3], "y_test": WORDS[:3]}, "y_test: found <U3, allowed: labels as those"),
        ({"x": X, "y": Y, "x_test": X[:3, :4], "y_test": Y[:3]}, r"test samples have the shape \[1, 4, 8\]"),
    ],
    ids=range(15),
)
@pytest.mark.parametrize("zipped", [False, True])
def test_arrays_that_cannot_work(tmp_path, values, message, zipped):
    path = tmp_path / "in.npz" if zipped else write(tmp_path / "in", **values)
    if zipped:
        np.savez(path, **values)
    with pytest.raises(UserError, match=message) as caught:
        arrays(path)
    assert "\n" not in str(caught.value)


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize("suffix", ["npz", "npy"])
@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04", pickle.dumps(Evil()), "cut", "objects", "header"])
def test_files_that_are_damaged_or_would_execute_code(tmp_path, suffix, content, capsys):
    path = tmp_path / f"x.{suffix}"
    np.save(tmp_path / "y.npy", Y)
    if isinstance(content, str):
        values = np.array([Evil()] * N) if content == "objects" else X
        (np.savez if suffix == "npz" else np.save)(
            path, **({"x": values, "y": Y} if suffix == "npz" else {"arr": values})
        )
        whole = path.read_bytes()
        odd = whole.replace(b"}", b"(").replace(b"PK\x03\x04\x14\0\0\0\0", b"PK\x03\x04\x14\0\x20\0\0")  # patched data
        content = {"cut": whole[:700], "objects": whole, "header": odd}[content]
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"x.{suffix}: not an array of numbers or words that numpy can read"):
        arrays(path, **({} if suffix == "npz" else {"labels": tmp_path / "y.npy"}))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.asfortranarray(RNG.normal(size=(N, 4))), "found float64 .60, 4., more than data.memory_limit"),
        (RNG.normal(size=(N, 4)).astype(">f4"), "found >f4"),
        (RNG.integers(0, 9, (N, 4), dtype=np.uint16), "found uint16"),
    ],
)
def test_what_cannot_be_read_from_where_it_lies(tmp_path, x, message):
    path = write(tmp_path / "in", x=x, y=Y)
    with pytest.raises(UserError, match=message):
        arrays(path, memory_limit=0)
    assert np.allclose(arrays(path, test=0).train.x.numpy(), x)


def test_paths_and_limits_that_cannot_work(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    for path, options, message in (
        ("none", {}, "none, which does not exist, allowed: an .npz, a folder"),
        ("none.npz", {}, "No such file"),
        ("a.npz", {"memory_limit": 0}, "take 0 MiB with the copy for training, which is more. Raise it, or save"),
        ("a.npz", {"labels": tmp_path / "y.npy"}, "data.labels: found .* with one .npy of samples"),
    ):
        with pytest.raises(UserError, match=message):
            arrays(tmp_path / path, **options)


def test_a_spec_in_python_and_what_a_run_says(tmp_path):
    path = write(tmp_path / "in", x=X, y=WORDS)
    run = bpfree.fit("mlp", {"name": "arrays", "path": path}, "dfa", epochs=1, out=tmp_path / "run")
    assert (
        json.loads((tmp_path / "run" / "last.ckpt" / "state.json").read_text())["preprocess"]["class_names"][0] == "cat"
    )
    assert bpfree.load(run.folder).config.data.load().class_names == ("cat", "dog", "emu")


def test_labels_that_are_numbers(tmp_path):
    y = RNG.normal(size=(N, 2))
    data = arrays(write(tmp_path / "in", x=X.astype("f4"), y=y), values=True)
    assert (data.classes, data.class_names, tuple(data.train.y.shape), data.train.y.dtype) == (
        0,
        None,
        (48, 2),
        torch.float32,
    )
    run = bpfree.fit(
        "mlp", {"name": "arrays", "path": tmp_path / "in", "values": True}, "dfa", task="regress", epochs=1
    )
    assert run.result["test"]["rmse"] > 0
    with pytest.raises(UserError, match="y: samples contain NaN"):
        arrays(write(tmp_path / "holes", x=X, y=hole(y, 3)), values=True)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.arange(N) % 3 + 1, "found 3 classes of which the largest is 3, but none is 0.*classes=4"),
        (np.where(Y == 2, 1_000_000, Y), "found 3 classes of which the largest is 1000000, but none is 2"),
    ],
)
def test_gaps_between_labels_from_python_are_told(labels, message):
    with pytest.raises(UserError, match=message):
        make_dataset((X, labels))
    assert make_dataset((X, np.arange(N) % 3 + 1), classes=4).classes == 4


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X, np.array([0, 1e30, 2e30] * 20), "40 of 60 labels that are missing, not integers or too large, number 1"),
        (X, Y.astype(np.uint64) + np.uint64(2**63), "60 of 60 labels"),
        (X, np.float64(3), "y: found a single value, allowed: labels"),
        (np.float64(3), Y, "found float64 "),
        (np.zeros((N, 0)), Y, r"found samples of shape \[0\], which hold no values"),
        (np.zeros((N, 1, 0, 8), np.uint8), Y, r"found samples of shape \[1, 0, 8\], which hold no values"),
        (np.zeros((N, 4), complex), Y, "found complex128"),
        (np.array([["a"]] * N), Y, "found <U1"),
    ],
)
def test_samples_and_labels_that_would_be_misread(tmp_path, x, y, message):
    with pytest.raises(UserError, match=message):
        arrays(write(tmp_path / "a", x=x, y=y))


@pytest.mark.parametrize("kind", ["longdouble", "uint16", ">f4", ">i2", "float16", "bool"])
def test_samples_of_every_type(tmp_path, kind):
    values = np.arange(N * 2).reshape(N, 2).astype(kind)
    data = arrays(write(tmp_path / "a", x=values, y=Y), test=0)
    assert data.train.x.double().tolist() == values.astype(float).tolist()


def test_colours_with_transparency_and_channels_last(tmp_path):
    images = RNG.integers(0, 256, (N, 8, 9, 4), dtype=np.uint8)
    data = arrays(write(tmp_path / "a", x=images, y=Y), test=0)
    assert torch.equal(data.train.x, torch.from_numpy(images).permute(0, 3, 1, 2))
    with pytest.raises(UserError, match=r"found images \[60, 8, 9, 4\], allowed from a file"):
        arrays(tmp_path / "a", memory_limit=0)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_only_regular_files_are_read(tmp_path):
    folder = write(tmp_path / "a", y=Y)
    os.mkfifo(folder / "x.npy")
    os.mkfifo(tmp_path / "a.npz")
    (tmp_path / "zero.npz").symlink_to("/dev/zero")
    (tmp_path / "b.npz").mkdir()
    (tmp_path / "b.npy").mkdir()
    options = {"labels": folder / "y.npy"}
    for path, kind, more in (
        ("a", "a named pipe", {}),
        ("a.npz", "a named pipe", {}),
        ("zero.npz", "a device", {}),
        ("b.npy", "a folder", options),
        ("a/x.npy", "a named pipe", options),
    ):
        with pytest.raises(UserError, match=f"found {kind}"):
            arrays(tmp_path / path, **more)
    for path in ("/dev/zero", folder / "x.npy", tmp_path / "b.npy"):
        with pytest.raises(UserError, match="found a (device|named pipe|folder)"):
            DATASETS["table"](tmp_path, path=Path(path), label="x")
    with pytest.raises(UserError, match="data.path: found '~nouser/a.npz'"):
        arrays(Path("~nouser/a.npz"))
