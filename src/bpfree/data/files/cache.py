"""A cache of decoded images: one file of pixels, written once. It is whole or absent, and belongs to exact files.

<cache>/<name>-<hash of the options>-<hash of the files>/
    pixels.bin   uint8 [N, C, H, W], row by row: the images that could be read
    index.json   N, the shape, and for each file that could not be read the reason

The hash of the files contains their names, sizes and times. So a changed file gives another folder, and pixels of other
files are never read by mistake.
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

from bpfree.data.files.abandoned import remove_abandoned
from bpfree.data.files.rows import RowFile, Rows, bytes_of
from bpfree.errors import UserError

_FORMAT = 1  # to be raised when the files or the decoding change, so that old caches are not read
_PIXELS, _INDEX = "pixels.bin", "index.json"


class Cached(NamedTuple):
    """Images that an earlier process decoded.

    Attributes:
        x: uint8 [M, C, H, W], which stays in the file.
        broken: for each image that could not be read, its position among the N files and the reason. The other images
            are in x, in order.
    """

    x: Rows
    broken: dict[int, str]


def cache_folder(cache: Path, root: Path, files: Sequence[str], *options: object) -> Path:
    """Return the folder for the pixels of these files. It is another folder if the size or time of a file changes.

    Args:
        cache: the folder of all caches.
        root: the folder of the images.
        files: the paths of the images below `root`, in order.
        options: everything else that the pixels depend on.
    """
    # Another version of Pillow may decode or scale to slightly different pixels.
    wanted = hashlib.blake2b(repr((_FORMAT, PIL.__version__, str(root), options)).encode(), digest_size=6)
    content, base = hashlib.blake2b(digest_size=12), f"{root}{os.sep}"
    for file in files:
        # A file name on Linux may be bytes that are not UTF-8. Plain "utf-8" raises an error for such a name.
        content.update(f"{file}\0{_state(base + file)}\0".encode("utf-8", "surrogateescape"))
    return cache / f"{root.name}-{wanted.hexdigest()}-{content.hexdigest()}"


def _state(file: str) -> str:
    """Return the size and time of a file as text, by which a change is noticed. Contents would take far longer."""
    try:
        status = os.stat(file)  # noqa: PTH116 -- twice as fast as Path.stat, for thousands of files
    except OSError:  # a link whose target does not exist
        return "gone"
    return f"{status.st_size} {status.st_mtime_ns}"


def open_cache(place: Path) -> Cached | None:
    """Return the images in a cache folder; None if it does not exist or is damaged, so that they are decoded again."""
    if not (place / _INDEX).is_file() or not (place / _PIXELS).is_file():
        return None
    try:
        index = json.loads((place / _INDEX).read_text(encoding="utf-8"))
        rows, shape = int(index["rows"]), tuple(int(length) for length in index["shape"])
        broken = {int(position): str(why) for position, why in index["broken"].items()}
        # A file that is too short would raise its error only in the middle of a training.
        if (place / _PIXELS).stat().st_size != rows * prod(shape):
            return None
        return Cached(Rows(RowFile(place / _PIXELS, 0, shape, torch.uint8), torch.arange(rows)), broken)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_cache(place: Path, shape: tuple[int, ...], images: Iterable[Tensor | UserError], count: int) -> Cached:
    """Write images one after another, and open what was written. A killed process leaves no folder of that name.

    Args:
        place: the folder, from `cache_folder`.
        shape: the shape [C, H, W] of an image.
        images: uint8 tensors of that shape, or errors for images that cannot be read.
        count: the largest number of images, to check the free space before the work begins.

    Raises:
        UserError: the disk is too full, or the folder cannot be written.
    """
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(place.parent, ".*-*")
        if (free := shutil.disk_usage(place.parent).free) < count * prod(shape):
            raise UserError(
                f"data.cache: the decoded images take {count * prod(shape) >> 20:,} MiB, and {place.parent} has room "
                f"for {free >> 20:,}. Name a folder on another disk (data.cache), or give a smaller data.size"
            )
        # A name that begins with a dot is not a cache. The folder gets its final name when all is on the disk.
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
    """Write pixels and index, and wait until both are on the disk: a power cut must not leave a short file behind."""
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
    """Rename the new folder to its final name, unless another process was quicker and its folder is whole."""
    new.chmod(0o755)  # a temporary folder is private, but a cache may be shared by several users
    if place.exists() and open_cache(place) is None:
        shutil.rmtree(place, ignore_errors=True)
    try:
        # A rename is one step for all other processes. It fails if the folder exists with files in it.
        new.rename(place)
    except OSError:
        if open_cache(place) is None:
            raise


def _forget_older(place: Path) -> None:
    """Remove caches of the same folder from before its files changed. A process that reads one still has it open."""
    for other in place.parent.glob(f"{_escaped(place.name.rpartition('-')[0])}-*"):
        if other != place:
            shutil.rmtree(other, ignore_errors=True)


def _escaped(name: str) -> str:
    """Return the name as a pattern that matches the name alone: a folder may be called "a[1]"."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
