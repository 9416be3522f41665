"""Read the user's arrays from files of numpy. Large .npy files are read batch by batch. Nothing is unpickled."""

import math
import zlib
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from tokenize import TokenError
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch
from torch import Tensor

from bpfree.data.classes import with_test
from bpfree.data.dataset import Dataset, refuse_not_finite
from bpfree.data.files.limits import COPIES, fits
from bpfree.data.files.rows import RowFile, Rows
from bpfree.data.labels import Labels
from bpfree.data.split import Split
from bpfree.data.tensors import channels_first, has_channels_last, to_tensor
from bpfree.disk.paths import check_regular, open_regular, user_path
from bpfree.errors import UserError

Array = np.ndarray[Any, Any]

_NAMES = {
    "train": (("x", "y"), ("x_train", "y_train")),
    "validation": (("x_val", "y_val"), ("x_valid", "y_valid"), ("x_validation", "y_validation")),
    "test": (("x_test", "y_test"),),
}
_LARGEST_LABEL = 2.0**53  # below which a float64 holds every integer exactly
_MAGIC = b"\x93NUMPY"
_IN_FILES = ("uint8", "float16", "float32", "float64", "int16", "int32", "int64")
# Exceptions of numpy for damaged files; they have no common base class.
_BROKEN = (
    *(OSError, ValueError, EOFError, KeyError, MemoryError, NotImplementedError),
    *(BadZipFile, zlib.error, TokenError),
)


def arrays(
    data_dir: Path,
    *,
    path: Path,
    labels: Path | None = None,
    test: float | None = None,
    values: bool = False,
    memory_limit: float | None = None,
) -> Dataset:
    """Your own arrays: at data.path an .npz of x and y, a folder of x.npy and y.npy, or an .npy beside data.labels.

    Arrays x_val, y_val and x_test, y_test are further splits. Labels are integers or words; numbers may have gaps.
    Bytes are images [N, H, W], [N, C, H, W] or [N, H, W, C], which training normalises. Other samples pass as they are.

    Args:
        data_dir: not used.
        path: the file or folder. A relative path counts from the current folder; a run's config keeps the full path.
        labels: an .npy of labels, if `path` is an .npy of samples.
        test: the share of the samples that becomes the test split, by a fixed key. Default: 0.2, or 0 if there are
            further splits.
        values: True if labels are numbers [N, ...] to be predicted (tasks regress and sequence), and not classes.
        memory_limit: in MiB; .npy files that take more memory are read batch by batch. Default: a quarter of the
            memory.

    Raises:
        UserError: a file does not exist or is damaged, an array is missing, or values cannot be learned from.
    """
    labels = None if labels is None else user_path(labels, "data.labels")
    available, read = _open(user_path(path, "data.path"), labels, memory_limit)
    names: Array | None = None
    splits: dict[str, Split] = {}
    for split, (of_x, of_y) in _pairs(available, path).items():
        x, y, where = _samples(read(of_x), f"{path}, {of_x}"), read(of_y), f"{path}, {of_y}"
        if not y.ndim:
            raise UserError(f"{where}: found a single value, allowed: labels [N], one for each sample")
        if len(x) != len(y):
            raise UserError(f"{path}: found {len(x)} samples and {len(y)} labels, allowed: one for each sample")
        if values:
            numbers = to_tensor(y, where).float()
            refuse_not_finite(numbers, where)
            splits[split] = Split(x, numbers)
        else:
            y = _labels(y, where)
            names = np.unique(y) if names is None else names  # train comes first: its classes are the classes
            splits[split] = Split(x, _numbers(y, names, where))
    if names is not None and len(names) < 2:
        raise UserError(f"{path}: found labels of {len(names)} classes, allowed: of two or more")
    words = None if names is None or np.array_equal(names, np.arange(len(names))) else tuple(map(str, names.tolist()))
    splits = with_test(splits, test)
    train, others = splits["train"], splits.get("validation")
    classes = 0 if names is None else len(names)
    return Dataset("arrays", train, splits.get("test"), Labels(classes, words), validation=others)


def _open(path: Path, labels: Path | None, memory_limit: float | None) -> tuple[list[str], Callable[[str], Any]]:
    """Return the names of the arrays, and a function that reads one of them by its name."""
    if labels is not None and path.suffix != ".npy":
        raise UserError(f"data.labels: found {labels}, but data.path is {path}, allowed: with one .npy of samples")
    if path.is_dir() or labels is not None:
        files = {"x": path, "y": labels} if labels else {file.stem: file for file in sorted(path.glob("*.npy"))}
        # Labels always come into memory: they are small, and to number the classes needs all of them.
        return list(files), lambda name: _read_npy(files[name], memory_limit if name.startswith("x") else math.inf)
    if path.suffix != ".npz":
        raise UserError(
            f"data.path: found {path}{'' if path.exists() else ', which does not exist'}, allowed: an .npz, a folder "
            "of .npy files, or an .npy with data.labels"
        )
    return _npz_names(path, memory_limit), partial(_read_npz, path)


def _pairs(available: Collection[str], path: Path) -> dict[str, tuple[str, str]]:
    """Return the names of samples and labels of each split for which both arrays exist."""
    present = {
        split: pair
        for split, pairs in _NAMES.items()
        if (pair := next((p for p in pairs if {*p} <= {*available}), None))
    }
    if "train" not in present:
        raise UserError(
            f"{path}: found {', '.join(available) or 'no arrays'}, allowed: x and y (or x_train and y_train), and "
            "beside them x_val and y_val, x_test and y_test"
        )
    return present


def _read_npy(file: Path, memory_limit: float | None) -> Array | Rows:
    """Return an array in memory, or `Rows` if it takes more than the limit.

    Raises:
        UserError: the file is damaged, or is too large and of a layout that cannot be read by rows.
    """
    try:
        with open_regular(file) as opened:
            if opened.read(len(_MAGIC)) != _MAGIC:  # numpy would else try to unpickle the file
                raise ValueError("of another format")
        # A map reads no values yet. Its shape and type decide whether the array comes into memory.
        mapped = np.lib.format.open_memmap(file, mode="r")
    except _BROKEN as error:
        raise _damaged(file, error) from error
    if fits(mapped.nbytes, memory_limit):
        return _native(np.array(mapped))
    dtype = mapped.dtype
    if dtype.name not in _IN_FILES or not dtype.isnative or not mapped.flags.c_contiguous or mapped.ndim < 2:
        raise UserError(
            f"{file}: found {dtype} [{', '.join(map(str, mapped.shape))}], more than data.memory_limit, allowed: "
            f"{', '.join(_IN_FILES)} in C order, which can be read from where they lie. Save it so, or raise the limit"
        )
    # The map itself is not kept: pages of it that were read would count as memory of the process.
    # Grey images get their channel here, because `unsqueeze` would read all rows of the file.
    shape = (1, *mapped.shape[1:]) if dtype.name == "uint8" and mapped.ndim == 3 else mapped.shape[1:]
    return Rows(RowFile(file, mapped.offset, shape, getattr(torch, dtype.name)), torch.arange(len(mapped)))


def _npz_names(path: Path, memory_limit: float | None) -> list[str]:
    """Return the names of the arrays in an .npz; raise UserError if they do not fit into memory, since it is a zip."""
    check_regular(path)
    try:
        with ZipFile(path) as archive:
            members = archive.infolist()
    except _BROKEN as error:
        raise _damaged(path, error) from error
    size = sum(member.file_size for member in members)
    if not fits(size, memory_limit):
        raise UserError(
            f"data.memory_limit: the arrays of {path} take {COPIES * size >> 20:,} MiB with the copy for training, "
            "which is more. Raise it, or save them as .npy files in a folder: those are read from where they lie"
        )
    return [member.filename.removesuffix(".npy") for member in members]


def _read_npz(path: Path, name: str) -> Array:
    """Return an array of an .npz; raise UserError if it is damaged or would have to be unpickled."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return _native(archive[name])
    except _BROKEN as error:
        raise _damaged(path, error) from error


def _damaged(file: Path, error: BaseException) -> UserError:
    """Return the error for a file that numpy cannot read."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return UserError(f"{file}: not an array of numbers or words that numpy can read ({reason})")


def _native(array: Array) -> Array:
    """Return the array in the byte order of this machine, which is all that torch reads."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _labels(values: Array, where: str) -> Array:
    """Return labels [N] as int64 or as words.

    Raises:
        UserError: labels have another shape or type, have fractions, or one is missing.
    """
    labels = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
    if labels.ndim != 1 or labels.dtype.kind not in "biufUS":
        raise UserError(f"{where}: found {values.dtype} {list(values.shape)}, allowed: labels [N], integers or words")
    if not len(labels):
        raise UserError(f"{where}: found no labels, allowed: one for each sample")
    if labels.dtype.kind == "S":
        labels = np.char.decode(labels, "utf-8", "replace")
    if labels.dtype.kind == "U":
        labels, missing = np.char.strip(labels), np.char.str_len(np.char.strip(labels)) == 0
    elif labels.dtype.kind == "f":
        missing = ~np.isfinite(labels) | (labels != np.round(labels)) | (np.abs(labels) >= _LARGEST_LABEL)
        # NaN does not have an integer: numpy casts it to an arbitrary one.
        labels = np.where(missing, 0, labels).astype(np.int64)
    else:
        # A larger uint64 would become negative in int64.
        missing = labels > np.iinfo(np.int64).max if labels.dtype == np.uint64 else np.zeros(len(labels), bool)
        labels = labels.astype(np.int64)
    if missing.any():
        raise UserError(
            f"{where}: found {int(missing.sum())} of {len(labels)} labels that are missing, not integers or too large, "
            f"number {int(missing.argmax())}, from 0, the first of them; allowed: integers or words, or numbers "
            "to be predicted with data.values=true"
        )
    return labels


def _numbers(labels: Array, names: Array, where: str) -> Tensor:
    """Return labels as places among the names, int64 [N]; raise UserError for a label that training does not have."""
    if labels.dtype.kind != names.dtype.kind:
        raise UserError(f"{where}: found {labels.dtype}, allowed: labels as those of training, {names.dtype}")
    strange = ~np.isin(labels, names)
    if strange.any():
        label = labels[strange.argmax()].item()
        raise UserError(f"{where}: found the label {label!r}, allowed: those of training")
    # np.unique has sorted the names, and each label is one of them: a binary search finds its place.
    return torch.from_numpy(np.searchsorted(names, labels).astype(np.int64))


def _samples(values: Array | Rows, where: str) -> Tensor:
    """Return samples [N, ...] as a tensor, images with channels first; raise UserError unless all are finite."""
    x: Tensor
    if isinstance(values, Rows):
        x = values
    elif values.dtype.kind in "biuf" and values.ndim:
        x = to_tensor(values, where).clone()
    else:
        raise UserError(f"{where}: found {values.dtype} {list(values.shape)}, allowed: numbers [N, ...]")
    refuse_not_finite(x, where)
    if x.dim() == 1:
        x = x.unsqueeze(1)
    if x.dtype == torch.uint8 and x.dim() == 3:
        x = x.unsqueeze(1)
    if isinstance(x, Rows):
        if has_channels_last(x):
            raise UserError(f"{where}: found images {list(x.shape)}, allowed from a file: [N, C, H, W]. Save them so")
        return x
    return channels_first(x)
