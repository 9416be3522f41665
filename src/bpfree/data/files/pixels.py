"""Many image files as one tensor: in memory, or in a file that is written once if they take more than a limit."""

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from math import prod
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from PIL import Image
from rich.progress import MofNCompleteColumn
from torch import Tensor

from bpfree.data.files.bars import bar
from bpfree.data.files.cache import open_cache, place_of, write_cache
from bpfree.data.files.images import UnknownRangeError, decode
from bpfree.data.files.limits import fits
from bpfree.disk.paths import check_regular
from bpfree.errors import UserError

Channels = Literal[1, 3, "auto"]

_BLOCK_BYTES = 4 << 20  # of decoded images that a thread hands over at a time
_SHOWN = 20  # broken images in an error
_GREY = ("1", "L", "LA", "La", "I", "F")


class Decoded(NamedTuple):
    """Images that were read.

    Attributes:
        x: uint8 [M, C, H, W]; Rows if they stay in a file.
        broken: why an image could not be read, by its position among the N files; the others are in x in order.
    """

    x: Tensor
    broken: dict[int, str]


class Wanted(NamedTuple):
    """What images are to become.

    Attributes:
        channels: 1 or 3; "auto" is 1 if all files are grey.
        size: (H, W); None for that of the files, which must agree.
        bits: of images of 16 bits; see `bpfree.data.files.images.decode`.
    """

    channels: Channels
    size: tuple[int, int] | None
    bits: int | None = None


def read_pixels(
    files: Sequence[str], root: Path, wanted: Wanted, *, memory_limit: float | None, cache: Path
) -> Decoded:
    """All images, each decoded by one of several threads. Broken ones are told of, not refused.

    Args:
        files: in order, as paths below `root`, which is how errors name them.
        root: a folder.
        wanted: their channels and size.
        memory_limit: MiB; decoded images that would take more go to the cache, and are read from there. None for a
            quarter of the memory.
        cache: the folder for that.

    Raises:
        UserError: no image can be read, sizes differ and none is wanted, images of 16 bits do not tell where white is,
            or the cache cannot be written.
    """
    place = place_of(cache, root, files, wanted)
    found = open_cache(place)
    if found is None:
        channels = _channels(files, root) if wanted.channels == "auto" else wanted.channels
        shape = (channels, *(wanted.size or _first_size(files, root, wanted._replace(channels=channels))))
        with bar(f"decoding {root.name}", MofNCompleteColumn(), total=len(files)) as told:
            images = _told(_of_one_size(files, root, shape, wanted._replace(channels=channels)), told)
            if not fits(len(files) * prod(shape), memory_limit):
                return Decoded(*write_cache(place, shape, images, len(files)))
            return _in_memory(images, len(files), shape)
    return Decoded(found.x.load() if fits(found.x.numel(), memory_limit) else found.x, found.broken)


def refuse_broken(broken: dict[int, str], files: Sequence[str], root: Path) -> None:
    """Raise UserError with the paths of images that cannot be read, if there are any."""
    if not broken:
        return
    why = {files[position]: error for position, error in broken.items()}
    told = [f"{name} ({_reason(why[name].removeprefix(f'{name}: '))})" for name in sorted(why)[:_SHOWN]]
    more = f"; and {len(broken) - _SHOWN:,} more" if len(broken) > _SHOWN else ""
    raise UserError(
        f"data.path: found {len(broken):,} of {len(files):,} files in {root} that are no images that can be read: "
        f"{'; '.join(told)}{more}. Remove or replace them, or go on without them: data.skip_broken=true"
    )


def _reason(error: str) -> str:
    """What is wrong with an image, without what would be right: that is the same for all."""
    return error.partition(", allowed")[0].removeprefix("no image that can be read (").removesuffix(")")


def _channels(files: Sequence[str], root: Path) -> Literal[1, 3]:
    return 1 if all(_is_grey(root / file) for file in files) else 3


def _is_grey(file: Path) -> bool:
    """By its header; what cannot be opened is told of later."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check_regular(file)
            with Image.open(file) as image:
                return image.mode in _GREY or image.mode.startswith("I;16")
    except Exception:  # whatever Pillow raises: decoding says what is wrong
        return True


def _first_size(files: Sequence[str], root: Path, wanted: Wanted) -> tuple[int, int]:
    broken: dict[int, str] = {}
    for position, file in enumerate(files):
        image = _decode(file, root, wanted)
        if isinstance(image, Tensor):
            return image.shape[1], image.shape[2]
        broken[position] = str(image)
    refuse_broken(broken, files, root)
    raise AssertionError("no files")


def _decode(file: str, root: Path, wanted: Wanted) -> Tensor | UserError:
    """The image, or why it cannot be read.

    Raises:
        UnknownRangeError: where white is must be said for all images.
    """
    assert wanted.channels != "auto"
    try:
        return decode(root / file, channels=wanted.channels, size=wanted.size, what=file, bits=wanted.bits)
    except UnknownRangeError:
        raise
    except UserError as error:
        return error


def _decode_all(
    files: Sequence[str], root: Path, shape: tuple[int, ...], wanted: Wanted
) -> Iterator[Tensor | UserError]:
    """In order, a few blocks ahead of who takes them. Pillow lets other threads run while it decodes."""
    workers = threads()
    block = max(1, min(_BLOCK_BYTES // prod(shape), 64))
    starts = iter(range(0, len(files), block))

    def work(start: int) -> list[Tensor | UserError]:
        return [_decode(file, root, wanted) for file in files[start : start + block]]

    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[Future[list[Tensor | UserError]]] = deque()
        try:
            for start in starts:
                ahead.append(pool.submit(work, start))
                if len(ahead) > 2 * workers:
                    yield from ahead.popleft().result()
            while ahead:
                yield from ahead.popleft().result()
        finally:
            for waiting in ahead:
                waiting.cancel()


def threads() -> int:
    """How many threads decode at a time: one for each core that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 32)


def _of_one_size(
    files: Sequence[str], root: Path, shape: tuple[int, ...], wanted: Wanted
) -> Iterator[Tensor | UserError]:
    """All images of that shape.

    Raises:
        UserError: at the end, if there are images of another shape.
    """
    others: dict[tuple[int, int], list[int]] = {}
    for position, image in enumerate(_decode_all(files, root, shape, wanted)):
        if isinstance(image, Tensor) and image.shape != shape:
            others.setdefault((image.shape[1], image.shape[2]), []).append(position)
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


def _told(images: Iterator[Tensor | UserError], told: Callable[[int], None]) -> Iterator[Tensor | UserError]:
    for image in images:
        told(1)
        yield image


def _in_memory(images: Iterator[Tensor | UserError], count: int, shape: tuple[int, ...]) -> Decoded:
    x = torch.empty(count, *shape, dtype=torch.uint8)
    broken: dict[int, str] = {}
    for position, image in enumerate(images):
        if isinstance(image, UserError):
            broken[position] = str(image)
        else:
            x[position - len(broken)] = image
    return Decoded(x[: count - len(broken)], broken)
