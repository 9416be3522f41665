"""Read an archive with a folder of images for each class. It is decoded once; a file of pixels is kept beside it."""

import io
import os
import tempfile
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import torch
from rich.progress import MofNCompleteColumn
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bpfree.data.files.archives import Readable, members
from bpfree.data.files.bars import bar
from bpfree.data.files.hashes import check_hash
from bpfree.data.files.images import SUFFIXES, decode
from bpfree.errors import UserError

_LARGEST_IMAGE = 64 << 20
_FORMAT = "1"  # to be raised when decoding changes, so that old pixels are not read


class Images(NamedTuple):
    """The images of an archive, ordered by class and file name: the order in the archive does not matter.

    Attributes:
        x: uint8 [N, C, H, W].
        y: int64 [N], the position of the class among `classes`.
        classes: the names of the folders, in order.
    """

    x: Tensor
    y: Tensor
    classes: tuple[str, ...]


def read_images(archive: Path, root: str, *, size: tuple[int, int], channels: int = 3) -> Images:
    """Return the images at `root`/class/file in a .zip, .tar or .tar.gz; other files are passed over.

    Args:
        archive: the path of the archive. Nothing is unpacked to the disk.
        root: the folder in the archive that contains the folders of the classes.
        size: (H, W) of the result; images are scaled until they fill it.
        channels: C, 1 (grey) or 3 (colour).

    Raises:
        UserError: the archive is damaged, unpacks to too many bytes, has no such folders, or has an image that cannot
            be read.
    """
    decoded: dict[tuple[str, str], Tensor] = {}
    with bar(f"decoding {archive.name}", MofNCompleteColumn()) as advance:
        for name, content in members(archive):
            place = _place(name, root)
            if place is None:
                continue
            what = f"{archive}: {name}"
            decoded[place] = decode(_whole(content, what), channels=channels, size=size, what=what)
            advance(1)
    if not decoded:
        raise UserError(f"{archive}: found no images in it, allowed: {root}/<class>/<image>. Fetch it again")
    order = sorted(decoded)
    classes = tuple(sorted({folder for folder, _ in order}))
    number = {folder: i for i, folder in enumerate(classes)}
    x = torch.empty(len(order), channels, *size, dtype=torch.uint8)
    for i, place in enumerate(order):  # each image is dropped as it is copied: two copies of all may not fit
        x[i] = decoded.pop(place)
    return Images(x, torch.tensor([number[folder] for folder, _ in order]), classes)


def read_published(archive: Path, known_hash: str, root: str, *, size: tuple[int, int], channels: int = 3) -> Images:
    """Return the images of the published archive. They are decoded the first time, and kept in a file beside it.

    Args:
        archive: the path of the archive.
        known_hash: the hash of the published archive, such as "md5:...".
        root: see `read_images`.
        size: see `read_images`.
        channels: see `read_images`.

    Raises:
        UserError: the hash is another one, or see `read_images`.
    """
    height, width = size
    beside = archive.with_name(f"{archive.name}.{channels}x{height}x{width}.safetensors")
    status = archive.stat()
    key = f"{_FORMAT} {known_hash} {status.st_size} {status.st_mtime_ns}"
    if images := _load(beside, key):  # hashing the archive takes seconds; its size and time tell that it is the same
        return images
    check_hash(archive, known_hash)
    images = read_images(archive, root, size=size, channels=channels)
    _save(images, beside, key)
    return images


def _place(name: str, root: str) -> tuple[str, str] | None:
    """Return class and file name of an image; None for any other member."""
    path = PurePosixPath(name)
    if path.suffix.lower() not in SUFFIXES or path.name.startswith(".") or len(path.parts) < 2:
        return None
    return (path.parts[-2], path.name) if path.parent.parent == PurePosixPath(root) else None


def _whole(content: Readable, what: str) -> io.BytesIO:
    """Return a member as a file in memory: Pillow seeks, and a member of a tar cannot."""
    value = content.read(_LARGEST_IMAGE + 1)
    if len(value) > _LARGEST_IMAGE:
        raise UserError(f"{what}: found more than {_LARGEST_IMAGE:,} bytes, allowed: images below that")
    return io.BytesIO(value)


def _load(beside: Path, key: str) -> Images | None:
    """Return the pixels that were kept; None if they are damaged or belong to another archive."""
    if not beside.is_file():
        return None
    try:
        with safe_open(beside, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("of") != key:
                return None
            return Images(file.get_tensor("x"), file.get_tensor("y"), tuple(metadata["classes"].split("/")))
    except (OSError, SafetensorError, KeyError):
        return None


def _save(images: Images, beside: Path, key: str) -> None:
    """Write the pixels whole or not at all. If the folder cannot be written, the next call decodes the images again."""
    with (
        suppress(OSError, SafetensorError),
        tempfile.TemporaryDirectory(dir=beside.parent, prefix=".decoded-") as folder,
    ):
        path = Path(folder) / beside.name
        # A safetensors file holds only text beside tensors. No folder's name contains "/", so the names can be joined.
        save_file({"x": images.x, "y": images.y}, path, {"of": key, "classes": "/".join(images.classes)})
        # Another process may read or write the same file: a rename shows it whole or not at all.
        os.replace(path, beside)
