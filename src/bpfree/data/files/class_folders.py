"""An archive with a folder of images for each class, decoded once: its pixels are kept beside it as plain bytes."""

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
_FORMAT = "1"  # of the pixels beside an archive


class Images(NamedTuple):
    """What was in the folders, ordered by class and file name, whatever the order of the archive."""

    x: Tensor  # uint8 [N, C, H, W]
    y: Tensor  # int64 [N], the position of the class among `classes`
    classes: tuple[str, ...]  # names of the folders, in order


def read_images(archive: Path, root: str, *, size: tuple[int, int], channels: int = 3) -> Images:
    """The images at `root`/class/file in a .zip, .tar or .tar.gz. Whatever lies elsewhere is passed over.

    Args:
        archive: any; nothing of it is written to the disk.
        root: the folder in the archive that has the folders of the classes.
        size: (H, W) of the result.
        channels: C, 1 or 3.

    Raises:
        UserError: the archive is damaged, unpacks to too much, has no such folders, or an image that cannot be read.
    """
    found: dict[tuple[str, str], Tensor] = {}
    with bar(f"decoding {archive.name}", MofNCompleteColumn()) as told:
        for name, content in members(archive):
            place = _place(name, root)
            if place is None:
                continue
            what = f"{archive}: {name}"
            found[place] = decode(_whole(content, what), channels=channels, size=size, what=what)
            told(1)
    if not found:
        raise UserError(f"{archive}: found no images in it, allowed: {root}/<class>/<image>. Fetch it again")
    order = sorted(found)
    classes = tuple(sorted({folder for folder, _ in order}))
    number = {folder: i for i, folder in enumerate(classes)}
    x = torch.empty(len(order), channels, *size, dtype=torch.uint8)
    for i, place in enumerate(order):
        x[i] = found.pop(place)
    return Images(x, torch.tensor([number[folder] for folder, _ in order]), classes)


def read_published(archive: Path, known_hash: str, root: str, *, size: tuple[int, int], channels: int = 3) -> Images:
    """As `read_images` of an archive that is the published one; decoded the first time, and kept beside it.

    Raises:
        UserError: it is another archive, or as `read_images` has it.
    """
    height, width = size
    beside = archive.with_name(f"{archive.name}.{channels}x{height}x{width}.safetensors")
    status = archive.stat()
    of = f"{_FORMAT} {known_hash} {status.st_size} {status.st_mtime_ns}"
    if images := _load(beside, of):
        return images
    check_hash(archive, known_hash)
    images = read_images(archive, root, size=size, channels=channels)
    _save(images, beside, of)
    return images


def _place(name: str, root: str) -> tuple[str, str] | None:
    """Class and file name of an image, None for anything else."""
    path = PurePosixPath(name)
    if path.suffix.lower() not in SUFFIXES or path.name.startswith(".") or len(path.parts) < 2:
        return None
    return (path.parts[-2], path.name) if path.parent.parent == PurePosixPath(root) else None


def _whole(content: Readable, what: str) -> io.BytesIO:
    value = content.read(_LARGEST_IMAGE + 1)
    if len(value) > _LARGEST_IMAGE:
        raise UserError(f"{what}: found more than {_LARGEST_IMAGE:,} bytes, allowed: images below that")
    return io.BytesIO(value)


def _load(beside: Path, of: str) -> Images | None:
    """The pixels that were kept, unless they are damaged or of another archive."""
    if not beside.is_file():
        return None
    try:
        with safe_open(beside, "pt") as file:
            known = file.metadata() or {}
            if known.get("of") != of:
                return None
            return Images(file.get_tensor("x"), file.get_tensor("y"), tuple(known["classes"].split("/")))
    except (OSError, SafetensorError, KeyError):
        return None


def _save(images: Images, beside: Path, of: str) -> None:
    """Whole or not at all; where nothing may be written, the images are decoded anew the next time."""
    with (
        suppress(OSError, SafetensorError),
        tempfile.TemporaryDirectory(dir=beside.parent, prefix=".decoded-") as folder,
    ):
        path = Path(folder) / beside.name
        save_file({"x": images.x, "y": images.y}, path, {"of": of, "classes": "/".join(images.classes)})
        os.replace(path, beside)
