"""Vocabularies: how a text becomes tokens, and which bytes a token stands for.

A vocabulary is a text, so that a run can keep it among its plain values: "bytes", or the JSON of a tokenizer of the
package `tokenizers`. "bytes": the token of each byte is its value. BPE (byte-pair encoding): Sennrich, Haddow, Birch
2016, "Neural Machine Translation of Rare Words with Subword Units", https://arxiv.org/abs/1508.07909, here over bytes:
it begins with all 256 bytes, and joins the most frequent pair of neighbours again and again. So any text has tokens,
and from the tokens the text comes back, byte by byte.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bpfree.errors import UserError
from bpfree.spec.extras import library

BYTES = "bytes"
"""The vocabulary of the 256 bytes."""

FEWEST, MOST = 257, 1 << 20
"""The smallest and the largest vocabulary of BPE."""

_PIECE = 1 << 20  # bytes that are encoded at a time, about

_SHOWN = [*range(33, 127), *range(161, 173), *range(174, 256)]
_HIDDEN = [value for value in range(256) if value not in _SHOWN]
_BYTES_OF = {chr(value): value for value in _SHOWN} | {chr(256 + i): value for i, value in enumerate(_HIDDEN)}
"""The byte that each letter of a byte-level token stands for. Bytes without a sign of their own have a later letter."""


@lru_cache(maxsize=8)
def bytes_of_tokens(vocabulary: str) -> tuple[int, ...]:
    """Return how many bytes each token stands for.

    Args:
        vocabulary: "bytes", or the JSON of a tokenizer.

    Raises:
        ValueError: the text is not a vocabulary; it comes from a file that may be damaged.

    Example:
        >>> bytes_of_tokens("bytes")[:3]
        (1, 1, 1)
    """
    if vocabulary == BYTES:
        return (1,) * 256
    try:
        tokens: dict[str, int] = json.loads(vocabulary)["model"]["vocab"]
        if sorted(tokens.values()) != list(range(len(tokens))):
            raise ValueError("its tokens are not numbered from 0 on")
        # A byte-level token has one letter for each byte.
        return tuple(len(token) for token in sorted(tokens, key=tokens.__getitem__))
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("it is not a tokenizer") from error


class Vocabulary:
    """A vocabulary, which encodes and decodes.

    Args:
        text: "bytes", or the JSON of a tokenizer.

    Raises:
        UserError: the package tokenizers is not installed, or the text is not a vocabulary.

    Example:
        >>> Vocabulary("bytes").encode(b"ab").tolist(), Vocabulary("bytes").decode([97, 98])
        ([97, 98], 'ab')
    """

    def __init__(self, text: str) -> None:
        try:
            self.size = len(bytes_of_tokens(text))
        except ValueError as error:
            raise UserError(f"vocabulary: found a text of {len(text)} letters, which is damaged ({error})") from error
        self.text = text

    @classmethod
    def train(cls, content: bytes, size: int, what: str) -> "Vocabulary":
        """Return BPE of a text: the 256 bytes and the most frequent pairs.

        Args:
            content: the text, in UTF-8.
            size: V, the number of tokens. A short text may give fewer.
            what: the text, for errors.

        Raises:
            UserError: the package tokenizers is not installed, the size is out of range, or the text is not UTF-8.
        """
        if not FEWEST <= size <= MOST:
            raise UserError(
                f"data.vocabulary: found {size}, allowed: {FEWEST} to {MOST:,} tokens, or leave it out for bytes"
            )
        tokenizers = library("tokenizers", "text", "data.vocabulary")
        made = tokenizers.Tokenizer(tokenizers.models.BPE())
        made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = tokenizers.decoders.ByteLevel()
        alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
        trainer = tokenizers.trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
        made.train_from_iterator(_texts(content, what), trainer)
        return cls(made.to_str())

    @property
    def dtype(self) -> "np.dtype[Any]":
        """The smallest type that holds each token."""
        return np.min_scalar_type(self.size - 1)

    def encode(self, content: bytes, what: str = "text") -> "np.ndarray[Any, Any]":
        """Return the tokens of a text, [N] of `dtype`.

        Args:
            content: the text; for BPE in UTF-8.
            what: the text, for errors.

        Raises:
            UserError: the text is not UTF-8.
        """
        if self._tokenizer is None:
            return np.frombuffer(content, np.uint8)
        parts = [np.array(self._tokenizer.encode(text).ids, self.dtype) for text in _texts(content, what)]
        return np.concatenate([np.empty(0, self.dtype), *parts])

    def padded(self, texts: Sequence[bytes], context: int) -> Tensor:
        """Return texts as samples of one length, int64 [N, T]: token k of the vocabulary is k + 1, and 0 fills the end.

        Args:
            texts: N texts; for BPE in UTF-8.
            context: T. Tokens beyond it are cut off.

        Example:
            >>> Vocabulary("bytes").padded([b"ab", b""], 3).tolist()
            [[98, 99, 0], [0, 0, 0]]
        """
        samples = np.zeros((len(texts), context), np.int64)
        for sample, text in zip(samples, texts, strict=True):
            tokens = self.encode(text)[:context]
            sample[: len(tokens)] = tokens.astype(np.int64) + 1
        return torch.from_numpy(samples)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of some tokens. Bytes that are not UTF-8 become the sign for an unknown letter."""
        return b"".join(self.pieces[token] for token in tokens).decode("utf-8", "replace")

    @cached_property
    def pieces(self) -> tuple[bytes, ...]:
        """The bytes that each token stands for.

        Raises:
            UserError: a token has a letter that stands for no byte.
        """
        if self.text == BYTES:
            return tuple(bytes([value]) for value in range(256))
        tokens: dict[str, int] = json.loads(self.text)["model"]["vocab"]
        in_order = sorted(tokens, key=tokens.__getitem__)
        try:
            return tuple(bytes(_BYTES_OF[letter] for letter in token) for token in in_order)
        except KeyError as error:
            raise UserError(f"vocabulary: it is damaged, since the letter {error} stands for no byte") from error

    @cached_property
    def _tokenizer(self) -> Any:
        if self.text == BYTES:
            return None
        try:
            return library("tokenizers", "text", "vocabulary").Tokenizer.from_str(self.text)
        except UserError:
            raise
        except Exception as error:  # the package raises Exception itself
            raise UserError(f"vocabulary: the tokenizer is damaged ({' '.join(str(error).split())})") from error


def _texts(content: bytes, what: str) -> Iterator[str]:
    """Iterate over a text in pieces that end with a line, or are long."""
    for piece in _pieces(content):
        try:
            yield piece.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{what}: found bytes that are not UTF-8 ({error.reason}), allowed with data.vocabulary: text in UTF-8"
                ". Leave data.vocabulary out, to read bytes as they are"
            ) from error


def _pieces(content: bytes) -> Iterable[bytes]:
    start = 0
    while start < len(content):
        end = _end(content, start + _PIECE)
        yield content[start:end]
        start = end


def _end(content: bytes, end: int) -> int:
    """Return where a piece ends: behind the next line, or before the next space, since BPE cuts there too."""
    if end >= len(content):
        return len(content)
    if line := content.find(b"\n", end, end + _PIECE) + 1:
        return line
    if (space := content.find(b" ", end, end + _PIECE)) > 0:
        return space
    return letter_at(content, end)


def letter_at(content: bytes, place: int) -> int:
    """Return the place in a text of UTF-8 at which the letter begins that has a byte at `place`.

    Args:
        content: the text.
        place: from 0 to its length.
    """
    begin = place
    while 0 < begin < len(content) and content[begin] & 0xC0 == 0x80:  # 10xxxxxx: a letter goes on
        begin -= 1
    return begin if place - begin < 4 else place  # a letter has at most 4 bytes; other bytes are not UTF-8
