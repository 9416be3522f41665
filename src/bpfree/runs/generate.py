"""Text from a run of the task `language`: a token is drawn, the net reads it, and the next one is drawn.

    p(token) is proportional to exp(score / temperature), among the `top_k` highest scores

The net sees at most T tokens, as in training. When there are more, it goes on with the last T / 2 of them. So a net
with a cache of keys and values, or with a recurrent state, computes a window anew only every T / 2 tokens; between them
a token costs one step. Any other net reads the whole window for each token.
"""

import codecs
import math
from collections.abc import Iterator, Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor

from bpfree.data import Preprocess
from bpfree.data.vocabulary import Vocabulary
from bpfree.errors import UserError, check_positive
from bpfree.nets.steps import go_on, goes_on
from bpfree.noise import Noise
from bpfree.tasks import Language
from bpfree.training.trainer import Trainer


class Sampling(TypedDict, total=False):
    """The options of `stream`, which has their meaning and their defaults."""

    tokens: int
    temperature: float
    top_k: int | None
    seed: int


def stream(
    trainer: Trainer,
    data: Preprocess,
    prompt: str,
    *,
    tokens: int = 200,
    temperature: float = 0.8,
    top_k: int | None = None,
    seed: int = 0,
) -> Iterator[str]:
    """Yield the text that follows a prompt, piece by piece, as the run draws it.

    A letter of several bytes comes when it is whole. Bytes that are not UTF-8 become the sign for an unknown letter.

    Args:
        trainer: of a run of the task `language`.
        data: its preprocessing, which has the vocabulary and T.
        prompt: the text before; at least one letter. Only its last T tokens count.
        tokens: how many tokens are drawn.
        temperature: above 1 draws more evenly, below 1 prefers likely tokens. 0 takes the most likely one.
        top_k: draw among so many of the likeliest tokens alone. Default: among all.
        seed: of the draws. The same seed gives the same text.

    Raises:
        UserError: an option is out of range, the prompt is empty, or the run does not predict a text.
    """
    _check(tokens, temperature, top_k)
    vocabulary = vocabulary_of(trainer, data)
    if not prompt:
        raise UserError('prompt: found an empty text, allowed: at least one letter, such as a line break "\\n"')
    first = vocabulary.encode(prompt.encode("utf-8", "surrogateescape"), "prompt").tolist()
    window = Window(trainer, data.shape[0])
    noise = Noise(seed).fold("generate")
    return _pieces(vocabulary, _drawn(window, first, tokens, temperature, top_k, noise))


def vocabulary_of(trainer: Trainer, data: Preprocess) -> Vocabulary:
    """Return the vocabulary of a run of language.

    Args:
        trainer: has the task.
        data: the preprocessing of the run.

    Raises:
        UserError: the run has another task, or its vocabulary is not known.
    """
    if not isinstance(trainer.task, Language):
        raise UserError(
            f"generate: found a run of the task {type(trainer.task).__name__}, allowed: Language, as with task=language"
        )
    if data.vocabulary is None:
        raise UserError(
            "generate: the run was trained on tokens whose letters are not known. Train it on a text, such as "
            "data=tinyshakespeare, or draw tokens from run.predict_proba"
        )
    return Vocabulary(data.vocabulary)


def _check(tokens: int, temperature: float, top_k: int | None) -> None:
    check_positive("tokens", tokens)
    if top_k is not None:
        check_positive("top_k", top_k)
    if not (math.isfinite(temperature) and temperature >= 0):
        raise UserError(f"temperature: found {temperature}, allowed: a number from 0 on. 0 takes the most likely token")


class Window:
    """The tokens that a net sees, and what it predicts behind them.

    Args:
        trainer: of the run.
        size: T, the largest number of tokens.
    """

    def __init__(self, trainer: Trainer, size: int) -> None:
        self.trainer = trainer
        self.size = size
        self.tokens: list[int] = []
        self._state: Any = None
        self._goes_on = goes_on(trainer.net) and trainer.rule.predicts_with_net

    def read(self, new: Sequence[int]) -> Tensor:
        """Add tokens, and return the scores of the token behind them, [V] on the CPU.

        Args:
            new: at least one token.
        """
        grown = [*self.tokens, *new]
        if len(grown) > self.size:
            # The first window is as long as possible. A later one leaves place for steps.
            grown = grown[-self.size if not self.tokens else -max(1, self.size // 2) :]
            self._state, new = None, grown
        self.tokens = grown
        return (self._step(new) if self._goes_on else self._whole()).double().cpu()

    def _step(self, new: Sequence[int]) -> Tensor:
        trainer = self.trainer
        x = torch.tensor([list(new)], device=trainer.device)
        with trainer.evaluating():
            out, self._state = go_on(trainer.net, x, self._state)
        return out[0]

    def _whole(self) -> Tensor:
        # Zeros fill the window, since a net may take T tokens only. No token sees what comes behind it.
        x = torch.zeros(1, self.size, dtype=torch.int64)
        x[0, : len(self.tokens)] = torch.tensor(self.tokens)
        return self.trainer.predict(x.to(self.trainer.device))[0, len(self.tokens) - 1]


def _drawn(
    window: Window, first: Sequence[int], count: int, temperature: float, top_k: int | None, noise: Noise
) -> Iterator[int]:
    """Yield the tokens one by one, each drawn by the scores behind those before."""
    scores = window.read(first)
    for i in range(count):
        token = draw(scores, temperature, top_k, noise.fold(i))
        yield token
        if i + 1 < count:
            scores = window.read([token])


def draw(scores: Tensor, temperature: float, top_k: int | None, noise: Noise) -> int:
    """Return a token, drawn by its score.

    Args:
        scores: [V], floating numbers on the CPU.
        temperature: see `stream`.
        top_k: see `stream`.
        noise: the key of the draw.

    Raises:
        UserError: scores are NaN, so the weights of the net are.
    """
    if bool(scores.isnan().any()):
        raise UserError("generate: the net gives NaN. Load the best checkpoint, or train again with a lower lr")
    if temperature == 0:
        return int(scores.argmax())
    best = scores.topk(len(scores) if top_k is None else min(top_k, len(scores)))  # in order
    shares = ((best.values - best.values[0]) / temperature).softmax(0).cumsum(0)
    place = torch.searchsorted(shares, noise.rand(1, dtype=scores.dtype) * shares[-1], right=True)
    return int(best.indices[place.clamp_max(len(shares) - 1)])


def _pieces(vocabulary: Vocabulary, tokens: Iterator[int]) -> Iterator[str]:
    """Yield the text of tokens; a letter whose bytes are in several tokens comes with its last one."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for token in tokens:
        if text := decoder.decode(vocabulary.pieces[token]):
            yield text
    if rest := decoder.decode(b"", final=True):
        yield rest
