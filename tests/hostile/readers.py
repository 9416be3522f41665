"""Hostile files for the readers of people's own data: images, tables, arrays, tars, Parquet files."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

Make = Callable[[Path], object]
Case = tuple[str, list[str], Make]


def _png(size: tuple[int, int] = (4, 4)) -> bytes:
    import io

    buffer = io.BytesIO()
    Image.new("RGB", size, (200, 10, 10)).save(buffer, format="PNG")
    return buffer.getvalue()


def _npy(array: "np.ndarray[object, object]", *, pickled: bool = False) -> bytes:
    import io

    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=pickled)
    return buffer.getvalue()


HEADER = b"\x93NUMPY\x01\x00"
_LIES = "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 8), }"
CONTENTS: dict[str, bytes] = {
    "empty": b"",
    "zeros": bytes(4096),
    "noise": random.Random(1).randbytes(4096),
    "text": b"hello\n" * 10,
    "a cut image": _png()[:40],
    "an image": _png(),
    "objects": _npy(np.array([{}, {}], dtype=object), pickled=True),
    "no dimension": _npy(np.array(3.0)),
    "no rows": _npy(np.zeros((0, 4))),
    "no features": _npy(np.zeros((8, 0))),
    "longdouble": _npy(np.zeros((8, 4), dtype=np.longdouble)),
    "complex": _npy(np.zeros((8, 4), dtype=np.complex64)),
    "words": _npy(np.array(["a", "b"])),
    "a lying header": HEADER + len(_LIES).to_bytes(2, "little") + _LIES.encode(),
    "a header of code": HEADER + (20).to_bytes(2, "little") + b"__import__('os').x()",
    "huge cells": b"a,b\n" + b"x" * 200_000 + b",1\n",
    "quotes": b'a,b\n"1,2\n3,4\n',
    "nul cells": b"a,b\n\0,1\n2,3\n",
    "no rows of a table": b"a,b\n",
    "ragged": b"a,b\n1\n1,2,3\n",
    "columns twice": b"a,a\n1,2\n3,4\n",
}
SPECIAL: dict[str, Make] = {
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a folder": lambda path: path.mkdir(),
    "gone": lambda path: None,
}


def cases() -> list[Case]:
    """Name, arguments of `train`, and what makes the files in the folder `samples`."""
    made: list[Case] = []
    for name, make in {**{n: _holds(c) for n, c in CONTENTS.items()}, **SPECIAL}.items():
        made += [
            (f"table: {name}", ["data={name: table, path: samples/t.csv, target: b}"], _at("t.csv", make)),
            (f"arrays: {name}", ["data={name: arrays, path: samples/x.npy, labels: samples/y.npy}"], _arrays(make)),
            (f"folder: {name}", ["data={name: folder, path: samples, size: 8}"], _images(make)),
            (f"webdataset: {name}", ["data={name: webdataset, path: samples/t.tar}"], _at("t.tar", make)),
            (f"parquet: {name}", ["data={name: parquet, path: samples/t.parquet}"], _at("t.parquet", make)),
        ]
    return [(name, ["digits/dfa", *arguments], make) for name, arguments, make in made]


def _holds(content: bytes) -> Make:
    return lambda path: path.write_bytes(content)


def _at(file: str, make: Make) -> Make:
    return lambda folder: make(folder / file)


def _arrays(make: Make) -> Make:
    def write(folder: Path) -> None:
        make(folder / "x.npy")
        np.save(folder / "y.npy", np.arange(8) % 2)

    return write


def _images(make: Make) -> Make:
    def write(folder: Path) -> None:
        for label in ("a", "b"):
            (folder / label).mkdir()
            for n in range(10):
                (folder / label / f"{n}.png").write_bytes(_png((8, 8)))
        make(folder / "a" / "hostile.png")

    return write
