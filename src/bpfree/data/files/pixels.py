"""Decode many image files to one tensor, in memory or, if they take more than a limit, in a file written once."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from math import prod
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from rich.progress import MofNCompleteColumn
from torch import Tensor

from bpfree.data.files.bars import bar
from bpfree.data.files.cache import cache_folder, open_cache, write_cache
from bpfree.data.files.images import UnknownRangeError, decode, is_grey
from bpfree.data.files.limits import fits
from bpfree.errors import UserError

Channels = Literal[1, 3, "auto"]

_BLOCK_BYTES = 4 << 20  # decoded images that a thread returns at a time; for single images the overhead shows
_SHOWN = 20  # broken images in an error


class Decoded(NamedTuple):
    """Images that were decoded.

    Attributes:
        x: uint8 [M, C, H, W]; `Rows` if they stay in a file.
        broken: for each image that could not be read, its position among the N files and the reason. The other images
            are in x, in order.
    """

    x: Tensor
    broken: dict[int, str]


class PixelFormat(NamedTuple):
    """The format that images are decoded to.

    Attributes:
        channels: 1 or 3; "auto" is 1 if all files are grey, else 3.
        size: (H, W) in pixels; None for the size of the files, which must all have the same.
        bits: for images of 16 bits; see `bpfree.data.files.images.decode`.
    """

    channels: Channels
    size: tuple[int, int] | None
    bits: int | None = None

    @classmethod
    def of(cls, channels: Channels, size: int | list[int] | None, bits: int | None) -> "PixelFormat":
        """Return the format for the options of a data set, or raise UserError if they do not make sense.

        Args:
            channels: see the class.
            size: one length for squares, or [H, W].
            bits: see the class.
        """
        if bits is not None and not 8 <= bits <= 16:
            raise UserError(f"data.bits: found {bits}, allowed: 8 to 16")
        if size is None:
            return cls(channels, None, bits)
        values = [size, size] if isinstance(size, int) else size
        if len(values) != 2 or min(values) < 1:
            raise UserError(f"data.size: found {size}, allowed: one length above 0 for squares, or [height, width]")
        return cls(channels, (values[0], values[1]), bits)


def read_pixels(
    files: Sequence[str], root: Path, form: PixelFormat, *, memory_limit: float | None, cache: Path
) -> Decoded:
    """Decode all images, in several threads. Broken images are listed in the result; they raise no error.

    Args:
        files: the paths of the images below `root`, in order. Errors name images by these paths.
        root: the folder of the images.
        form: the format that images are decoded to.
        memory_limit: in MiB; decoded images that take more are written to the cache, and read from there. None for a
            quarter of the memory.
        cache: the folder of all caches.

    Raises:
        UserError: no image can be read, sizes differ and `form` has no size, 16-bit images do not show which value is
            white, or the cache cannot be written.
    """
    place = cache_folder(cache, root, files, form)
    cached = open_cache(place)
    if cached is None:
        channels = _channels(files, root) if form.channels == "auto" else form.channels
        shape = (channels, *(form.size or _first_size(files, root, form._replace(channels=channels))))
        with bar(f"decoding {root.name}", MofNCompleteColumn(), total=len(files)) as advance:
            images = _counted(_of_one_size(files, root, shape, form._replace(channels=channels)), advance)
            if not fits(len(files) * prod(shape), memory_limit):
                return Decoded(*write_cache(place, shape, images, len(files)))
            return _in_memory(images, len(files), shape)
    # The limit may differ from that of the process that wrote the cache, so a small cache may come into memory now.
    return Decoded(cached.x.load() if fits(cached.x.numel(), memory_limit) else cached.x, cached.broken)


def refuse_broken(broken: dict[int, str], files: Sequence[str], root: Path) -> None:
    """Raise UserError with the paths of images that cannot be read, if there are any; see `Decoded.broken`."""
    if not broken:
        return
    why = {files[position]: error for position, error in broken.items()}
    shown = [f"{name} ({_reason(why[name].removeprefix(f'{name}: '))})" for name in sorted(why)[:_SHOWN]]
    more = f"; and {len(broken) - _SHOWN:,} more" if len(broken) > _SHOWN else ""
    raise UserError(
        f"data.path: found {len(broken):,} of {len(files):,} files in {root} that cannot be read as images: "
        f"{'; '.join(shown)}{more}. Remove or replace them, or go on without them: data.skip_broken=true"
    )


def _reason(error: str) -> str:
    """Return what is wrong with an image, without the part about what is allowed, which is the same for all images."""
    return error.partition(", allowed")[0].removeprefix("not an image that can be read (").removesuffix(")")


def _channels(files: Sequence[str], root: Path) -> Literal[1, 3]:
    """Return 1 if all files are grey, else 3. Only headers are read, which is fast."""
    return 1 if all(is_grey(root / file) for file in files) else 3


def _first_size(files: Sequence[str], root: Path, form: PixelFormat) -> tuple[int, int]:
    """Return the size of the first image that can be read; raise UserError if none can be read."""
    broken: dict[int, str] = {}
    for position, file in enumerate(files):
        image = _decode(file, root, form)
        if isinstance(image, Tensor):
            return image.shape[1], image.shape[2]  # of [C, H, W]
        broken[position] = str(image)
    refuse_broken(broken, files, root)
    raise AssertionError("no files")


def _decode(file: str, root: Path, form: PixelFormat) -> Tensor | UserError:
    """Return the image, or the error that says why it cannot be read.

    Raises:
        UnknownRangeError: the user must say which value is white, for all images; to skip this one would not help.
    """
    assert form.channels != "auto"
    try:
        return decode(root / file, channels=form.channels, size=form.size, what=file, bits=form.bits)
    except UnknownRangeError:
        raise
    except UserError as error:
        return error


def _decode_all(
    files: Sequence[str], root: Path, shape: tuple[int, ...], form: PixelFormat
) -> Iterator[Tensor | UserError]:
    """Decode all images in order, in threads that run a few blocks ahead of the consumer.

    Threads are enough, because Pillow lets other threads run while it decodes. The number of blocks ahead is limited:
    else a slow disk for the cache would let decoded images fill the memory.
    """
    workers = threads()
    block = max(1, min(_BLOCK_BYTES // prod(shape), 64))
    starts = iter(range(0, len(files), block))

    def work(start: int) -> list[Tensor | UserError]:
        return [_decode(file, root, form) for file in files[start : start + block]]

    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[Future[list[Tensor | UserError]]] = deque()
        try:
            for start in starts:
                # The results are taken in the order of the files, whichever thread is ready first: an image is known by
                # its place.
                ahead.append(pool.submit(work, start))
                if len(ahead) > 2 * workers:
                    yield from ahead.popleft().result()
            while ahead:
                yield from ahead.popleft().result()
        finally:
            # The consumer may stop early, and the pool waits for its threads. Without this they would decode what is
            # queued.
            for waiting in ahead:
                waiting.cancel()


def threads() -> int:
    """Return the number of threads that decode at a time: one for each core that this process may use, at most 32."""
    # A batch system may give a process fewer cores than the machine has; `cpu_count` tells only the latter.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 32)


def _of_one_size(
    files: Sequence[str], root: Path, shape: tuple[int, ...], form: PixelFormat
) -> Iterator[Tensor | UserError]:
    """Iterate over the images of that shape.

    Raises:
        UserError: at the end, if images have another shape; by then all other sizes are known and can be named.
    """
    others: dict[tuple[int, int], list[int]] = {}
    for position, image in enumerate(_decode_all(files, root, shape, form)):
        if isinstance(image, Tensor) and image.shape != shape:
            others.setdefault((image.shape[1], image.shape[2]), []).append(position)
        # From the first image of another size on, the end is an error. Nothing more is yielded, but sizes are still
        # counted.
        elif not others or isinstance(image, UserError):
            yield image
    if others:
        count = sum(len(positions) for positions in others.values())
        shown = [f"{h}x{w} ({files[at[0]]})" for (h, w), at in list(others.items())[:3]]
        raise UserError(
            f"data.size: none was given, and of {len(files):,} images {count:,} are not of the size of the first, "
            f"{shape[1]}x{shape[2]} (height x width), but {', '.join(shown)}{', ...' if len(others) > 3 else ''}. Give "
            f"one for all, such as data.size={min(shape[1:])}, or data.size=[{shape[1]}, {shape[2]}]"
        )


def _counted(images: Iterator[Tensor | UserError], advance: Callable[[int], None]) -> Iterator[Tensor | UserError]:
    """Pass the images on, and move the progress bar by one for each."""
    for image in images:
        advance(1)
        yield image


def _in_memory(images: Iterator[Tensor | UserError], count: int, shape: tuple[int, ...]) -> Decoded:
    """Return the images as one tensor, which is filled as they come."""
    x = torch.empty(count, *shape, dtype=torch.uint8)
    broken: dict[int, str] = {}
    for position, image in enumerate(images):
        if isinstance(image, UserError):
            broken[position] = str(image)
        else:
            x[position - len(broken)] = image
    # A slice, not a copy: two copies of all images may not fit into memory.
    return Decoded(x[: count - len(broken)], broken)
