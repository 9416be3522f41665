"""The files of a data set that is cut into many, and the optional packages that read them."""

import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from bpfree.disk.paths import user_path
from bpfree.errors import UserError
from bpfree.spec import extras

MOST = 100_000
"""The largest number of files that a pattern may stand for."""

_LONGEST = 4096  # letters of a path
_RANGE = re.compile(r"\{(-?\d{1,18})\.\.(-?\d{1,18})\D")
_STARS = re.compile(r"[*?\[]")


def library(module: str, extra: str) -> Any:
    """Return a module of an optional package that reads data; see `bpfree.spec.extras.library`."""
    return extras.library(module, extra, "data")


def shard_files(path: Path, suffix: str, key: str, extra: str) -> list[Path]:
    """Return the files at a path: a file, the files of a folder with a suffix, or those that a pattern stands for.

    A pattern has braces, {000..146} or {a,b}, or the stars and brackets of a shell. What braces stand for must exist
    and keeps their order; other files are in the order of their names. Hidden files are passed over.

    Args:
        path: a file, a folder or a pattern.
        suffix: the end of the names of files in a folder, such as ".tar".
        key: the option of the user, for errors.
        extra: the extra of bpfree that installs the package for braces.

    Raises:
        UserError: there are no such files, too many, or one of them twice.
    """
    # os.path and not Path, which raises an error for a name that is too long.
    exists = os.path.exists(path)  # noqa: PTH110
    if exists and path.is_dir():
        files = sorted(file for file in path.glob(f"*{suffix}") if not file.name.startswith("."))
    elif exists:
        files = [path]
    else:
        texts = _braces(str(path), key, extra) if "{" in str(path) else [str(path)]
        files = [file for text in texts for file in _stars(text, key)]
    if not files or (not exists and files == [path]):
        raise UserError(
            f"{key}: found no files at {path}, allowed: a {suffix} file, a folder of them, or a pattern such as "
            f"{path.parent / f'train-{{000..146}}{suffix}'}"
        )
    if len(files) > MOST:
        raise _too_many(key, path)
    if len({*files}) < len(files):
        twice = next(file for i, file in enumerate(files) if file in files[:i])
        raise UserError(f"{key}: found {twice} twice in {path}, allowed: each file once")
    return files


def files_of_splits(
    path: Path, validation_path: Path | None, test_path: Path | None, suffix: str, extra: str
) -> Iterator[tuple[str, list[Path]]]:
    """Yield the name and the files of each split that has a path, the training split first.

    Args:
        path: of the training split; see `shard_files`.
        validation_path: of the validation split.
        test_path: of the test split.
        suffix: see `shard_files`.
        extra: see `shard_files`.

    Raises:
        UserError: there are no such files, too many, or one of them twice.
    """
    for split, option, where in (
        ("train", "data.path", path),
        ("validation", "data.validation_path", validation_path),
        ("test", "data.test_path", test_path),
    ):
        if where is not None:
            yield split, shard_files(user_path(where, option), suffix, option, extra)


def _stars(text: str, key: str) -> list[Path]:
    """Return the files that stars stand for; a text without stars stands for itself."""
    path = Path(text)
    if not _STARS.search(text):
        return [path]
    try:
        found = Path(path.anchor).glob(str(path.relative_to(path.anchor)))
        return sorted(file for file in islice(found, MOST + 1) if not file.name.startswith("."))
    except (ValueError, OSError) as error:
        raise UserError(f"{key}: found {text!r:.200}, allowed: a pattern such as train-*.tar ({error})") from error


def _braces(text: str, key: str, extra: str) -> Iterator[str]:
    """Iterate over the texts that braces stand for.

    Raises:
        UserError: the braces are not closed, or stand for too many texts.
    """
    # Checked before: the package would make a list of a range that fills the memory, and is slow with long texts.
    if len(text) > _LONGEST or any(abs(int(last) - int(first)) >= MOST for first, last in _RANGE.findall(text)):
        raise _too_many(key, Path(text))
    try:
        for number, each in enumerate(library("braceexpand", extra).braceexpand(text)):
            if number >= MOST:
                raise _too_many(key, Path(text))
            yield each
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{key}: found {text!r:.200}, allowed: braces such as {{000..146}} or {{a,b}}") from error


def _too_many(key: str, path: Path) -> UserError:
    return UserError(f"{key}: found {str(path)!r:.200}, which stands for more files than allowed: {MOST:,}")


def check_window(window: int) -> None:
    """Raise UserError unless a window has at least one sample."""
    if window < 1:
        raise UserError(f"data.window: found {window}, allowed: at least 1 sample, such as 10000")
