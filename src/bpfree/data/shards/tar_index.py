"""An index of tars: where each sample lies, and its label. Tars are read once for it, and then it is kept in a file.

<cache>/<name>-<hash of the paths and options>.safetensors

The file says of which tars it is, with their sizes and times. So an index of tars that have changed is made again.
"""

import hashlib
import json
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.progress import MofNCompleteColumn
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bpfree.data.files.bars import bar
from bpfree.data.files.images import SUFFIXES
from bpfree.data.files.kept import kept_or_made
from bpfree.data.shards.member_labels import LARGEST, LabelsRead
from bpfree.data.shards.tar_samples import Member, OpenTar, TarSample
from bpfree.disk.atomic import write_atomically
from bpfree.errors import UserError, shown

_FORMAT = 1  # to be raised when the file or the reading changes, so that old indexes are not read
_IMAGES = frozenset(suffix.removeprefix(".") for suffix in SUFFIXES)
ARRAY = "npy"
"""The end of the names of members that are arrays of numpy."""

_LARGEST_SAMPLE = 64 << 20  # bytes of a member, which come into memory at once


class Wanted(NamedTuple):
    """The choice of the sample and of its label among the members.

    Attributes:
        sample: the end of the name of the member that is the sample; None for the one that is an image or an array.
        label: the end of the name of the member with the label; None for "cls" or else "json".
        key: for JSON objects, the name under which the label lies.
        values: True if labels are numbers to be predicted.
    """

    sample: str | None
    label: str | None
    key: str
    values: bool


class TarIndex(NamedTuple):
    """The places of N samples in their tars.

    Attributes:
        shard: the place of the tar of each sample in the list of tars, int64 [N], rising.
        place: the offset of the sample in its tar, int64 [N].
        size: its number of bytes, int64 [N].
        y: the labels, int64 [N], places among the names; or float64 [N] or [N, D], numbers.
        names: the different labels, in the order in which they came; () for numbers.
        are_arrays: True if samples are arrays of numpy, and not images.
    """

    shard: Tensor
    place: Tensor
    size: Tensor
    y: Tensor
    names: tuple[str, ...]
    are_arrays: bool


def read_index(tars: Sequence[Path], wanted: Wanted, cache: Path, name: str) -> TarIndex:
    """Return the index of some tars. Of several processes, one reads the tars, and the others wait for its file.

    Args:
        tars: the paths of the tars.
        wanted: what is a sample, and what is its label.
        cache: the folder of all indexes.
        name: the beginning of the name of the file.

    Raises:
        UserError: a tar is missing or damaged, or a sample lacks a member or has a label that cannot be read.
    """
    _check(wanted)
    key = hashlib.blake2b(repr((_FORMAT, [*map(str, tars)], wanted)).encode("utf-8", "surrogateescape"), digest_size=8)
    kept, state = cache / f"{name}-{key.hexdigest()}.safetensors", _state(tars)
    return kept_or_made(
        kept,
        load=lambda: _load(kept, state, tars),
        make=lambda: scan(tars, wanted, name),
        save=lambda index: _save(index, kept, state),
    )


def scan(tars: Sequence[Path], wanted: Wanted, name: str) -> TarIndex:
    """Return the index of some tars, from their headers and labels. Samples themselves are not read.

    Args:
        tars: the paths of the tars.
        wanted: what is a sample, and what is its label.
        name: the text before the progress bar.

    Raises:
        UserError: see `read_index`.
    """
    labels = LabelsRead(wanted.key, wanted.values)
    columns: list[array[int]] = [array("q"), array("q"), array("q")]
    kinds: dict[bool, str] = {}
    with bar(f"indexing {name}", MofNCompleteColumn(), total=len(tars)) as advance:
        for number, path in enumerate(tars):
            with OpenTar(path) as tar:
                for sample in tar.samples():
                    where = f"{path}: {sample.key!r:.200}"
                    ending, member = _sample(sample, wanted, where)
                    kinds.setdefault(ending.rpartition(".")[2] == ARRAY, where)
                    for column, value in zip(columns, (number, *member), strict=True):
                        column.append(value)
                    ending, member = _label(sample, wanted, where)
                    labels.add(tar.read(member), ending, where)
            advance(1)
    if len(kinds) > 1:
        raise UserError(f"{kinds[True]} is an array and {kinds[False]} is an image, allowed: samples of one kind")
    if not kinds:
        raise UserError(f"{tars[0]}: found no samples in {len(tars)} tars, allowed: at least one")
    shard, place, size = (torch.tensor(np.array(column)) for column in columns)
    return TarIndex(shard, place, size, *labels.finish(), are_arrays=True in kinds)


def _check(wanted: Wanted) -> None:
    """Raise UserError for a member that cannot be a sample, such as a pickle, which may contain code."""
    for key, ending in (("sample", wanted.sample), ("label", wanted.label)):
        if ending is None:
            continue
        last = ending.lower().rpartition(".")[2]
        pickled = last in ("pyd", "pkl", "pickle", "pt", "pth")
        if pickled or (key == "sample" and last not in (*_IMAGES, ARRAY)):
            allowed = f"{', '.join(sorted(_IMAGES))} and {ARRAY}" if key == "sample" else "cls, json or text"
            why = ". Pickles are never read, because they may contain code" if pickled else ""
            raise UserError(f"data.{key}: found {ending!r}, allowed: {allowed}{why}")


def _sample(sample: TarSample, wanted: Wanted, where: str) -> tuple[str, Member]:
    """Return the member that is the sample."""
    if wanted.sample is not None:
        found = [ending for ending in (wanted.sample.lower(),) if ending in sample.members]
    else:
        found = [ending for ending in sample.members if ending in _IMAGES or ending == ARRAY]
    if len(found) != 1:
        raise UserError(
            f"{where}: found {len(found) or 'no'} members that can be the sample among {shown([*sample.members])}, "
            f"allowed: one, {', '.join(sorted(_IMAGES))} or {ARRAY}, or the one that data.sample names"
        )
    member = sample.members[found[0]]
    if not 0 < member.size <= _LARGEST_SAMPLE:
        raise UserError(f"{where}: found {member.size:,} bytes, allowed: 1 to {_LARGEST_SAMPLE:,}")
    return found[0], member


def _label(sample: TarSample, wanted: Wanted, where: str) -> tuple[str, Member]:
    """Return the member with the label."""
    endings = ("cls", "json") if wanted.label is None else (wanted.label.lower(),)
    ending = next((ending for ending in endings if ending in sample.members), None)
    if ending is None:
        raise UserError(
            f"{where}: found no label among the members {shown([*sample.members])}, allowed: {' or '.join(endings)}. "
            "Name the end of the member with data.label"
        )
    if (size := sample.members[ending].size) > LARGEST:
        raise UserError(f"{where}: found a label of {size:,} bytes, allowed: at most {LARGEST:,}")
    return ending, sample.members[ending]


def _state(tars: Sequence[Path]) -> str:
    """Return a hash of the sizes and times of the tars, by which a change is noticed."""
    digest = hashlib.blake2b(digest_size=16)
    for path in tars:
        try:
            status = path.stat()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
        digest.update(f"{status.st_size} {status.st_mtime_ns} ".encode())
    return digest.hexdigest()


def _load(kept: Path, state: str, tars: Sequence[Path]) -> TarIndex | None:
    """Return the index in a file; None if it is missing, damaged, or of other tars."""
    if not kept.is_file():
        return None
    try:
        with safe_open(kept, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("state") != state:
                return None
            shard, place, size, y = (file.get_tensor(name) for name in ("shard", "place", "size", "y"))
        names = tuple(map(str, json.loads(metadata["names"])))
        sizes = torch.tensor([path.stat().st_size for path in tars])
        whole = (
            all(column.dtype == torch.int64 and column.shape == shard.shape for column in (shard, place, size))
            and len(y) == len(shard) > 0
            and (not names or (y.dtype == torch.int64 and int(y.min()) >= 0 and int(y.max()) < len(names)))
            and bool((place >= 0).all() and (size > 0).all() and (place + size <= sizes[shard]).all())
        )
        return TarIndex(shard, place, size, y, names, metadata["arrays"] == "True") if whole else None
    except (OSError, SafetensorError, ValueError, KeyError, IndexError, TypeError):
        return None


def _save(index: TarIndex, kept: Path, state: str) -> None:
    """Write the index to its file, whole or not at all."""
    columns = {"shard": index.shard, "place": index.place, "size": index.size, "y": index.y}
    about = {"state": state, "names": json.dumps(index.names), "arrays": str(index.are_arrays)}
    write_atomically(kept, lambda file: save_file(columns, file, about))
