"""Decoded images in a file, written once: whole or absent, and never taken for those of other files.

<cache>/<name>-<hash of what was asked for>-<hash of the files>/
    pixels.bin   uint8 [N, C, H, W], row by row, of the images that could be read
    index.json   N, the shape, and which files could not be read and why
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from math import prod
from pathlib import Path
from typing import NamedTuple

import PIL
import torch
from torch import Tensor

from bpfree.data.files.leftovers import drop_abandoned
from bpfree.data.files.rows import RowFile, Rows, bytes_of
from bpfree.errors import UserError

_FORMAT = 1  # of the files and of what decoding does
_PIXELS, _INDEX = "pixels.bin", "index.json"


class Cached(NamedTuple):
    """Images that were read before.

    Attributes:
        x: uint8 [M, C, H, W].
        broken: why an image could not be read, by its position among the N files; the others are in x in order.
    """

    x: Rows
    broken: dict[int, str]


def place_of(cache: Path, root: Path, files: Sequence[str], *asked: object) -> Path:
    """Where the pixels of these files are kept: another place if one of them changes, by size or time.

    Args:
        cache: the folder of all that is kept.
        root: that the files are below.
        files: in order, as paths below it.
        asked: what else the pixels depend on.
    """
    wanted = hashlib.blake2b(repr((_FORMAT, PIL.__version__, str(root), asked)).encode(), digest_size=6)
    content, base = hashlib.blake2b(digest_size=12), f"{root}{os.sep}"
    for file in files:
        content.update(f"{file}\0{_state(base + file)}\0".encode("utf-8", "surrogateescape"))
    return cache / f"{root.name}-{wanted.hexdigest()}-{content.hexdigest()}"


def _state(file: str) -> str:
    try:
        status = os.stat(file)  # noqa: PTH116 -- twice as fast as by Path, of thousands of files
    except OSError:  # a link that leads nowhere
        return "gone"
    return f"{status.st_size} {status.st_mtime_ns}"


def open_cache(place: Path) -> Cached | None:
    """What is kept there; None if there is nothing, or something damaged."""
    if not (place / _INDEX).is_file() or not (place / _PIXELS).is_file():
        return None
    try:
        index = json.loads((place / _INDEX).read_text(encoding="utf-8"))
        rows, shape = int(index["rows"]), tuple(int(length) for length in index["shape"])
        broken = {int(position): str(why) for position, why in index["broken"].items()}
        if (place / _PIXELS).stat().st_size != rows * prod(shape):
            return None
        return Cached(Rows(RowFile(place / _PIXELS, 0, shape, torch.uint8), torch.arange(rows)), broken)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_cache(place: Path, shape: tuple[int, ...], images: Iterable[Tensor | UserError], count: int) -> Cached:
    """Write images as they come, and open what was written. A process that is killed leaves nothing under the name.

    Args:
        place: from `place_of`.
        shape: of an image.
        images: uint8 tensors of that shape, or why there is none.
        count: how many at most, to see beforehand whether there is room.

    Raises:
        UserError: there is no room, or nothing may be written.
    """
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        drop_abandoned(place.parent, ".*-*")
        if (free := shutil.disk_usage(place.parent).free) < count * prod(shape):
            raise UserError(
                f"data.cache: the decoded images take {count * prod(shape) >> 20:,} MiB, and {place.parent} has room "
                f"for {free >> 20:,}. Name a folder on another disk (data.cache), or give a smaller data.size"
            )
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}-", ignore_cleanup_errors=True) as new:
            _write(Path(new), shape, images)
            _put(Path(new), place)
    except OSError as error:
        raise UserError(f"data.cache: {place.parent} cannot be written ({error.strerror or error})") from error
    _forget_older(place)
    done = open_cache(place)
    assert done is not None
    return done


def _write(folder: Path, shape: tuple[int, ...], images: Iterable[Tensor | UserError]) -> None:
    broken: dict[int, str] = {}
    rows = 0
    with open(folder / _PIXELS, "wb") as file:
        for position, image in enumerate(images):
            if isinstance(image, UserError):
                broken[position] = str(image)
            else:
                file.write(bytes_of(image))
                rows += 1
        file.flush()
        os.fsync(file.fileno())
    with open(folder / _INDEX, "w", encoding="utf-8") as file:
        json.dump({"rows": rows, "shape": shape, "broken": broken}, file)
        file.flush()
        os.fsync(file.fileno())


def _put(new: Path, place: Path) -> None:
    """Under its name, unless another process was quicker."""
    new.chmod(0o755)
    if place.exists() and open_cache(place) is None:
        shutil.rmtree(place, ignore_errors=True)
    try:
        new.rename(place)
    except OSError:
        if open_cache(place) is None:
            raise


def _forget_older(place: Path) -> None:
    """Remove the pixels that the same folder had before its files changed; who reads them still has them open."""
    for other in place.parent.glob(f"{_escaped(place.name.rpartition('-')[0])}-*"):
        if other != place:
            shutil.rmtree(other, ignore_errors=True)


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
