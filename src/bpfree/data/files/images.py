"""Decode one image file to a tensor of bytes, or raise one clear error. Files are not trusted."""

import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from bpfree.disk.paths import check_regular
from bpfree.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
MOST_PIXELS = 64 * 1024 * 1024
# The formats are listed because Pillow would also pass Encapsulated PostScript to an interpreter, which runs programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_SURELY_FEWER = 14  # of 16 bits: an image whose values need no more has fewer bits, such as 12, or is very dark
_MODES = {1: "L", 3: "RGB"}
_COLOUR = ("RGB", "RGBA", "LA")  # modes for which Pillow drops the lower 8 of 16 bits
_GREY = ("1", "L", "LA", "La", "I", "F")
_TRANSPARENT = ("RGBA", "LA", "PA", "La", "RGBa")
# Exceptions of decoders for files that are damaged or not images; Pillow has no common base class for them.
_BROKEN = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, MemoryError),
    struct.error,
)
_TURNS = {  # by the number that EXIF calls orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnknownRangeError(UserError):
    """The error for a 16-bit image whose values do not show which value is white."""


class _Quiet:
    """Silence warnings about damaged metadata while at least one thread decodes.

    Python's warning filters belong to the process, not to a thread. So the first thread that enters sets the filter,
    and the last thread that leaves restores it.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.within = 0
        self.filters = warnings.catch_warnings()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self.lock:
            self.within += 1
            if self.within == 1:
                self.filters = warnings.catch_warnings()
                self.filters.__enter__()
                warnings.simplefilter("ignore")
        try:
            yield
        finally:
            with self.lock:
                self.within -= 1
                if self.within == 0:
                    self.filters.__exit__(None, None, None)


_QUIET = _Quiet()


def decode(
    file: BinaryIO | Path, *, channels: int, size: tuple[int, int] | None, what: str, bits: int | None = None
) -> Tensor:
    """Decode an image file to uint8 [C, H, W]: upright, transparent pixels on white, the first picture of an animation.

    An image of another shape than `size` is scaled until it fills `size`, and the rest is cut off equally at both
    sides, so that objects keep their proportions.

    Args:
        file: a file that is open for reading bytes, or a path.
        channels: C, 1 for grey or 3 for colour, whatever the file has.
        size: (H, W) of the result in pixels; None for that of the file.
        what: the file as the user knows it, for errors.
        bits: for an image of 16 bits, how many of them hold values, 8 to 16: white is 2^bits - 1. None means 16, and an
            image whose top two bits are empty is then refused.

    Returns:
        uint8 [C, H, W].

    Raises:
        UnknownRangeError: a 16-bit image does not show which value is white.
        UserError: the file is empty, damaged, not a regular file, of an unknown format, or has more than `MOST_PIXELS`.
    """
    if channels not in _MODES:
        raise UserError(f"channels: found {channels}, allowed: 1 (grey) or 3 (colour)")
    if size is not None and min(size) < 1:
        raise UserError(f"size: found {list(size)}, allowed: height and width of at least 1")
    try:
        with _QUIET(), _open(file, what) as image:
            is_deep = any(";16" in str(tile[3]) for tile in getattr(image, "tile", ())) and image.mode in _COLOUR
            upright = _upright(image, size)
            if is_deep:
                _check_colour(upright, what, bits)
            pixels = np.asarray(_fit(_flat(upright, what, bits), _MODES[channels], size))
    except UserError:
        raise
    except _BROKEN as error:
        raise UserError(
            f"{what}: not an image that can be read ({_line(error)}), allowed: whole files of the formats "
            f"{', '.join(_FORMATS)}. Remove or replace it"
        ) from error
    # A copy, since the array of Pillow is read-only, and torch warns about tensors that share such memory.
    return torch.from_numpy(pixels.copy()).view(*pixels.shape[:2], channels).permute(2, 0, 1).contiguous()


def is_grey(file: BinaryIO | Path) -> bool:
    """Return True if the header says that an image is grey, or if it cannot be read: decoding it will say why."""
    try:
        with _QUIET(), _open(file, "image") as image:
            return image.mode in _GREY or image.mode.startswith("I;16")
    except Exception:  # whatever Pillow raises
        return True


def _open(file: BinaryIO | Path, what: str) -> Image.Image:
    """Open an image: only its header is read, and the size that it claims is checked before any pixel is decoded."""
    if isinstance(file, Path):
        check_regular(file, what)
    try:
        image = Image.open(file, formats=_FORMATS)
    except UnidentifiedImageError as error:
        raise ValueError("of an unknown format, or empty") from error
    except Image.DecompressionBombError as error:
        raise _too_large(what, _line(error)) from error
    if image.width * image.height > MOST_PIXELS:
        image.close()
        raise _too_large(what, f"{image.width} x {image.height} pixels")
    return image


def _too_large(what: str, found: str) -> UserError:
    """Return the error for an image with too many pixels: small files may unpack to gigabytes."""
    return UserError(f"{what}: found {found}, allowed: at most {MOST_PIXELS:,} pixels. Scale it down, or remove it")


def _upright(image: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    """Decode the image, and rotate it upright by its EXIF orientation."""
    if size is not None and image.format == "JPEG":
        # JPEG can be decoded at a half, a quarter or an eighth of its size, which saves most of the time for large
        # photographs. Twice the wanted size is kept, so that scaling down still averages over pixels.
        image.draft(image.mode, (2 * max(size), 2 * max(size)))
    image.load()
    turn = None
    with suppress(*_BROKEN):  # the metadata may be damaged while the pixels are fine
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image if turn is None else image.transpose(turn)


def _flat(image: Image.Image, what: str, bits: int | None) -> Image.Image:
    """Return the image in 8 bits and without transparency."""
    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise UserError(f"{what}: found pixels of 32 bits, allowed: 8 or 16")
        return Image.fromarray((values >> (bits_of(int(values.max()), what, bits) - 8)).astype(np.uint8))
    if image.mode == "F":
        raise UserError(f"{what}: found pixels that are not integers, allowed: 8 or 16 bits")
    if image.mode in _TRANSPARENT or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image


def bits_of(largest: int, what: str, bits: int | None) -> int:
    """Return how many bits of a 16-bit image hold values.

    A 12-bit camera stores values up to 4095 in 16 bits. Read as 16 bits, all its images would be nearly black.

    Args:
        largest: the largest value of the image.
        what: the file as the user knows it, for errors.
        bits: the user's choice, 8 to 16; None for 16.

    Raises:
        UnknownRangeError: the largest value does not fit into `bits`, or `bits` is None and the top two bits are empty.
    """
    needed = largest.bit_length()
    if bits is None and 0 < needed <= _SURELY_FEWER:
        raise UnknownRangeError(
            f"{what}: found an image of 16 bits whose largest value is {largest}, so that its top bits are empty, "
            f"allowed: values up to 65535. Say how many bits hold values, such as data.bits={max(needed, 8)}, or "
            "data.bits=16 if the image is as dark as that"
        )
    if bits is not None and needed > bits:
        raise UnknownRangeError(
            f"{what}: found the value {largest} in an image of 16 bits, allowed: up to {2**bits - 1}, as data.bits is "
            f"{bits}. Give data.bits={needed}"
        )
    return bits or 16


def _check_colour(image: Image.Image, what: str, bits: int | None) -> None:
    """Raise UnknownRangeError if the top two bits of a 16-bit colour image are empty, or `bits` is below 16.

    Pillow reads only the upper 8 bits of 16-bit colours, so fewer bits cannot be scaled up without loss.
    """
    bands = image.getextrema()[: 1 if image.mode == "LA" else 3]
    largest = max(int(band[1]) for band in bands if isinstance(band, tuple))
    if bits not in (None, 16) or (bits is None and largest.bit_length() <= _SURELY_FEWER - 8):
        raise UnknownRangeError(
            f"{what}: found a colour image of 16 bits that is darker than a quarter of white, or data.bits={bits}, "
            "allowed: colours that use all 16 bits. Multiply the values in the file so that white is 65535, or give "
            "data.bits=16 if the image is as dark as that"
        )


def _fit(image: Image.Image, mode: str, size: tuple[int, int] | None) -> Image.Image:
    """Return the image in grey or colour, scaled and cut to `size`."""
    image = image.convert(mode)
    if size is None or image.size == (size[1], size[0]):
        return image
    return ImageOps.fit(image, (size[1], size[0]), Image.Resampling.BILINEAR)


def _line(error: Exception) -> str:
    """Return an error of Pillow as one line."""
    return " ".join(str(error).split()) or type(error).__name__
