"""Pickles of the form that data sets have, and those that would do something: none of them does."""

import pickle
import struct

import numpy as np
import pytest

from bpfree.data.files.pickles import read_pickle
from bpfree.errors import UserError

VALUES = np.arange(24, dtype=np.uint8).reshape(4, 6)


def short(text):
    """A text as Python 2 wrote it."""
    return b"U" + bytes([len(text)]) + text


def array(values=VALUES, module=b"numpy.core.multiarray", kind=b"u1", column_major=False):
    """An array as Python 2 pickled it, in the files of 2009."""
    content = values.tobytes("F" if column_major else "C")
    rebuilt = b"c" + module + b"\n_reconstruct\n(cnumpy\nndarray\n(K\0tU\x01btR"
    dtype = b"cnumpy\ndtype\n(" + short(kind) + b"K\0K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    shape = b"(" + b"".join(b"J" + struct.pack("<i", length) for length in values.shape) + b"t"
    flag = b"I01\n" if column_major else b"I00\n"
    return rebuilt + b"(K\x01" + shape + dtype + flag + b"T" + struct.pack("<i", len(content)) + content + b"tb"


def python2(data=None, labels=(3, 1, 4, 1)):
    """A batch of CIFAR as Python 2 pickled it."""
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    content = array() if data is None else data
    return b"\x80\x02}(" + short(b"data") + content + short(b"labels") + numbers + b"u."


def read(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    return read_pickle(tmp_path / "file")


@pytest.mark.parametrize("column_major", [False, True])
@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_a_batch_as_python_2_wrote_it(module, column_major, tmp_path):
    content = python2(array(module=module, column_major=column_major))
    found = read(tmp_path, content)
    np.testing.assert_array_equal(found["data"], VALUES)
    assert found["labels"] == [3, 1, 4, 1]
    if module == b"numpy._core.multiarray":
        np.testing.assert_array_equal(pickle.loads(content, encoding="bytes")[b"data"], VALUES)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("values", [VALUES, np.asfortranarray(VALUES), VALUES[:1]])
def test_every_protocol(protocol, values, tmp_path):
    batch = {"data": values, b"fine_labels": [1, 99], "filenames": [b"a.png", "b.png"], "batch_label": "testing"}
    found = read(tmp_path, pickle.dumps(batch, protocol))
    np.testing.assert_array_equal(found["data"], values)
    assert found["fine_labels"] == [1, 99]
    assert len(found["filenames"]) == 2


class Calls:
    """Pickled, it is a call of anything."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def marker(tmp_path):
    return tmp_path / "executed"


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("nested", [False, True])
def test_code_is_not_executed(protocol, nested, tmp_path):
    import os

    for call in (
        Calls(os.system, f"touch {marker(tmp_path)}"),
        Calls(exec, f"open({str(marker(tmp_path))!r}, 'w')"),
        Calls(open, str(marker(tmp_path)), "w"),
        Calls(np.load, str(marker(tmp_path)), None, True),
        Calls(getattr, int, "mro"),
    ):
        value = {"data": VALUES, "labels": [call]} if nested else call
        with pytest.raises(UserError, match=r"file: not a pickle that bpfree reads \(it (calls|has the instruction) "):
            read(tmp_path, pickle.dumps(value, protocol))
    assert not marker(tmp_path).exists()


BAD = {
    "empty": b"",
    "text": b"hello",
    "cut": python2()[:-20],
    "a list": b"\x80\x02]q\0.",
    "objects": python2(array(kind=b"O8")),
    "floats": python2(array(kind=b"f4")),
    "another shape": python2(array()[:-2].replace(b"J\x06\0", b"J\x07\0") + b"tb"),
    "memory": b"\x80\x02}r" + struct.pack("<I", (1 << 32) - 1) + b".",
    "a claim of gigabytes": b"\x80\x02}T\xff\xff\xff\x7fab.",
    "an instance": b"(ios\nsystem\n.",
    "an extension": b"\x80\x02\x82\x01.",
    "a persistent thing": b"Psome\n.",
    "newobj": b"\x80\x02cnumpy\nndarray\n)\x81.",
    "a name within": b"\x80\x04\x8c\x05numpy\x8c\x0dndarray.dumps\x93.",
    "another encoding": b"\x80\x02}(" + short(b"x") + b"c_codecs\nencode\n(X\x01\0\0\0aX\x03\0\0\0hextRu.",
    "nothing to build": b"\x80\x02}(" + short(b"x") + b"K\x01K\x02bu.",
    "an array as state": b"\x80\x02}(" + short(b"x") + b"cnumpy\nndarray\n)RK\x02bu.",
    "not enough": b"\x80\x02R.",
    "a frame without end": b"\x80\x04\x95" + b"\xff" * 8 + b"}.",
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_such_pickle_is_one_line_that_names_the_file(case, tmp_path):
    with pytest.raises(UserError, match=r"file: not a pickle that bpfree reads \(") as caught:
        read(tmp_path, BAD[case])
    assert "\n" not in str(caught.value)


def test_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr("bpfree.data.files.pickles._LARGEST", 10)
    with pytest.raises(UserError, match="allowed: at most 10 for a pickle"):
        read(tmp_path, python2())
