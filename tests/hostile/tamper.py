"""Ways to spoil a run folder: each is a name and a function that spoils the folder it is given."""

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.hostile.guard import EVIL

Spoil = Callable[[Path], None]
ABSENT = object()
WRONG: list[Any] = [None, "x", "", [1], [], {}, {"a": {}}, -1, 0, 3.5, 999, 1e308, 10**30, float("nan"), True, ABSENT]
CODE = [f"{EVIL}:Net", {"name": f"{EVIL}:Net"}, [{"name": f"{EVIL}:Net"}]]
CHECKPOINT = ("weights.safetensors", "rule.safetensors", "optimizer.safetensors", "state.json")
FILES = ["config.yaml", "metrics.jsonl", "result.json", *(f"last.ckpt/{name}" for name in CHECKPOINT)]
SAVED = [name for name in FILES if name != "result.json"]


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where values lie within a plain value; of lists the first and the last."""
    if at:
        yield at
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*at, key))
    elif isinstance(value, list):
        for index in sorted({0, len(value) - 1} if value else ()):
            yield from places(value[index], (*at, index))


def changed(value: Any, at: tuple[Any, ...], new: Any) -> Any:
    """A copy of a plain value in which one place holds another."""
    copy = json.loads(json.dumps(value))
    inner = copy
    for key in at[:-1]:
        inner = inner[key]
    if new is ABSENT:
        del inner[at[-1]]
    else:
        inner[at[-1]] = new
    return copy


def values_of(run: Path, file: str) -> list[tuple[str, Spoil]]:
    """Every place of a JSON or YAML file, holding every wrong value; in an order by chance, the same each time."""
    text = (run / file).read_text()
    is_yaml = file.endswith(".yaml")
    value = yaml.safe_load(text) if is_yaml else json.loads(text)
    cases = []
    for at in places(value):
        for new in [*WRONG, *(CODE if is_yaml else [])]:
            told = "absent" if new is ABSENT else repr(new)
            cases.append((f"{file}: {'.'.join(map(str, at))} = {told}", _writes(file, value, at, new)))
    random.Random(file).shuffle(cases)
    return cases


def _writes(file: str, value: Any, at: tuple[Any, ...], new: Any) -> Spoil:
    def spoil(run: Path) -> None:
        other = changed(value, at, new)
        text = yaml.safe_dump(other) if file.endswith(".yaml") else json.dumps(other)
        (run / file).write_text(text)

    return spoil


def files_of(outside: Path) -> list[tuple[str, Spoil]]:
    """Files cut, emptied, swapped, and replaced by links, pipes, devices and folders."""
    cases: list[tuple[str, Spoil]] = []
    for file in FILES:
        cases += [(f"{file}: {what}", _replaces(file, spoil)) for what, spoil in _ways(outside)]
    for folder in ("last.ckpt", "best.ckpt", "plots"):
        cases.append((f"{folder}: a link", _replaces(folder, lambda path: path.symlink_to(outside))))
        cases.append((f"{folder}: a file", _replaces(folder, lambda path: path.write_text("x") and None)))
        cases.append((f"{folder}: a pipe", _replaces(folder, lambda path: os.mkfifo(path))))
        cases.append((f"{folder}: gone", _replaces(folder, lambda path: None)))
    for lines in LINES:
        cases.append((f"metrics.jsonl: {lines[:40]!r}", _replaces("metrics.jsonl", _says(lines))))
    cases.append((".lock: a link", _replaces(".lock", lambda path: path.symlink_to(outside / "notes.txt"))))
    cases.append(("plots/training.png: a link", _link_in_plots(outside / "precious.png")))
    cases += [(f"last.ckpt/{a} <- {b}", _swaps(a, b)) for a in CHECKPOINT for b in CHECKPOINT if a != b]
    return cases


LINES = [
    "null\n" * 3,
    "[1]\n{}\n",
    '{"kind": "epoch", "epoch": "x"}\n',
    '{"kind": "epoch", "epoch": 1, "train": 3}\n',
    '{"kind": "epoch", "epoch": 1e308, "step": null, "train": {"loss": null}}\n',
    '{"kind": "tracker", "tracker": "$\\\\foo$", "step": 1, "values": {"$x_$": 1}}\n',
    '{"kind": "stopped", "why": [1]}\n',
    "[" * 5000 + "\n",
    "\x00\n",
]


def _ways(outside: Path) -> list[tuple[str, Callable[[Path], object]]]:
    return [
        ("empty", lambda path: path.write_bytes(b"")),
        ("zeros", lambda path: path.write_bytes(bytes(64))),
        ("noise", lambda path: path.write_bytes(random.Random(0).randbytes(5000))),
        ("deep", lambda path: path.write_text("[" * 100_000)),
        ("gone", lambda path: None),
        ("a folder", lambda path: path.mkdir()),
        ("a pipe", lambda path: os.mkfifo(path)),
        ("a link to a device", lambda path: path.symlink_to("/dev/zero")),
        ("a link outside", lambda path: path.symlink_to(outside / "notes.txt")),
        ("a link to itself", lambda path: path.symlink_to(path)),
        ("a huge header", lambda path: path.write_bytes((2**62).to_bytes(8, "little") + b"{}")),
        ("a lying header", lambda path: path.write_bytes(_lying())),
        ("a huge number", lambda path: path.write_text("9" * 10_000)),
    ]


def _lying() -> bytes:
    header = json.dumps({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 8]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(8)


def _replaces(file: str, make: Callable[[Path], object]) -> Spoil:
    def spoil(run: Path) -> None:
        path = run / file
        if path.is_dir() and not path.is_symlink():
            path.rename(path.with_name(f"{path.name}-before"))
        else:
            path.unlink(missing_ok=True)
        make(path)

    return spoil


def _says(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(text)


def _link_in_plots(target: Path) -> Spoil:
    def spoil(run: Path) -> None:
        (run / "plots").mkdir(exist_ok=True)
        (run / "plots" / "training.png").unlink(missing_ok=True)
        (run / "plots" / "training.png").symlink_to(target)

    return spoil


def _swaps(file: str, other: str) -> Spoil:
    def spoil(run: Path) -> None:
        folder = run / "last.ckpt"
        (folder / file).write_bytes((folder / other).read_bytes())

    return spoil
