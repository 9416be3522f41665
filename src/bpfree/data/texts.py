"""Texts as tokens: they are encoded once, kept in a file, and read by a memory map, window by window.

<cache>/<name>-<hash>.safetensors holds the tokens of each split, uint8, uint16 or uint32 [N], and the vocabulary. The
hash is that of the text and of the options. So a changed text or option gives another file.
"""

import hashlib
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from bpfree.data.files.kept import kept_or_made
from bpfree.data.files.rows import Blocks
from bpfree.data.vocabulary import BYTES, Vocabulary, letter_at
from bpfree.disk.atomic import write_atomically

_FORMAT = 2  # to be raised when the file or the encoding changes, so that old files are not read
SPLITS = ("train", "validation", "test")


class Encoded(NamedTuple):
    """A text as tokens.

    Attributes:
        splits: the tokens of each split that is not empty, [N], in a file or in memory.
        vocabulary: how they were made.
    """

    splits: "dict[str, np.ndarray[Any, Any]]"
    vocabulary: str


class Windows:
    """Windows of a text, one behind the other, as a source of `bpfree.data.files.rows.Rows`.

    Args:
        path: the text, for messages.
        tokens: [N].
        context: T, the number of tokens in a window.
        ahead: 0 for the tokens themselves, 1 for the token after each.
    """

    dtype = torch.int64
    blocks: Blocks | None = None

    def __init__(self, path: Path, tokens: "np.ndarray[Any, Any]", context: int, ahead: int) -> None:
        self.path = path
        self.shape: tuple[int, ...] = (context,)
        self._tokens = tokens[ahead:]

    def read(self, index: Tensor) -> Tensor:
        """Return the windows at the positions `index` [n], int64, as a tensor [n, T] in memory."""
        places = index.numpy()[:, None] * self.shape[0] + np.arange(self.shape[0])
        return torch.from_numpy(self._tokens[places].astype(np.int64))


def divided(content: bytes, shares: Sequence[float]) -> list[bytes]:
    """Return the parts of a text for training, validation and test. A cut never divides a letter of UTF-8.

    Args:
        content: the text.
        shares: the parts, in this order; their sum is 1.
    """
    cuts = [letter_at(content, round(len(content) * sum(shares[:i]))) for i in range(1, len(shares))]
    return [content[a:b] for a, b in zip([0, *cuts], [*cuts, len(content)], strict=True)]


def encoded(parts: Sequence[bytes], vocabulary: int | None, cache: Path, name: str) -> Encoded:
    """Return a text as tokens. Of several processes, one encodes it, and the others wait for its file.

    Args:
        parts: the text for training, for validation and for the test; each may be empty.
        vocabulary: the number of tokens of BPE, which learns from the training part; None for bytes.
        cache: the folder of all texts.
        name: the beginning of the name of the file.

    Raises:
        UserError: see `bpfree.data.vocabulary.Vocabulary.train`.
    """
    key = hashlib.blake2b(repr((_FORMAT, *map(len, parts), vocabulary)).encode(), digest_size=16)
    for part in parts:
        key.update(part)
    kept = cache / f"{name}-{key.hexdigest()}.safetensors"
    return kept_or_made(
        kept,
        load=lambda: _load(kept),
        make=lambda: _encode(parts, vocabulary, name),
        save=lambda made: _save(made, kept),
    )


def _encode(parts: Sequence[bytes], size: int | None, name: str) -> Encoded:
    """Encode each part by itself."""
    vocabulary = Vocabulary(BYTES) if size is None else Vocabulary.train(parts[0], size, name)
    tokens = {split: vocabulary.encode(part, name) for split, part in zip(SPLITS, parts, strict=True) if part}
    return Encoded(tokens, vocabulary.text)


def _save(made: Encoded, kept: Path) -> None:
    write_atomically(kept, lambda file: save_file(made.splits, file, {"vocabulary": made.vocabulary}))


def _load(kept: Path) -> Encoded | None:
    """Return the tokens in a file as memory maps; None if it is missing or damaged."""
    if not kept.is_file():
        return None
    try:
        with safe_open(kept, "np") as file:  # it compares the sizes in the header with that of the file
            vocabulary = (file.metadata() or {})["vocabulary"]
        size = Vocabulary(vocabulary).size
        splits = _maps(kept)
        whole = all(tokens.ndim == 1 and len(tokens) and int(tokens.max()) < size for tokens in splits.values())
        return Encoded(splits, vocabulary) if whole and "train" in splits else None
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):  # a UserError is a ValueError
        return None


def _maps(kept: Path) -> "dict[str, np.ndarray[Any, Any]]":
    """Return the tensors of a file of safetensors as memory maps; its own readers copy them to memory."""
    with open(kept, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header: dict[str, Any] = json.loads(file.read(length))
    types = {"U8": np.uint8, "U16": np.uint16, "U32": np.uint32}
    return {
        split: np.memmap(
            kept, types[about["dtype"]], "r", offset=8 + length + about["data_offsets"][0], shape=tuple(about["shape"])
        )
        for split in SPLITS
        if (about := header.get(split))
    }
