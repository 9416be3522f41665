"""Shapings: functions from the scores of a population to the weights of the members' noise in the step.

Scores are to be minimised. A member whose score is not finite counts as the worst.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from bpfree.errors import check_positive

Shaping = Callable[[Tensor], Tensor]
"""Scores [P] -> weights [P], higher for worse."""


def raw(scores: Tensor) -> Tensor:
    """Return the scores themselves; in a mirrored pair only their difference has an effect."""
    return _finite(scores)


def zscore(scores: Tensor) -> Tensor:
    """Return (score - mean) / standard deviation; 0 if all scores are equal."""
    scores = _finite(scores)
    spread = scores.std(correction=0)
    # 0 / 0 is NaN, and `where` drops it. An `if` in Python would read the spread, and so make the CPU wait for the GPU.
    return torch.where(spread > 0, (scores - scores.mean()) / spread, 0.0)


def centred_ranks(scores: Tensor) -> Tensor:
    """Return ranks from -0.5 for the best to 0.5 for the worst; equal scores share their mean rank.

    Reference: Salimans et al. 2017, https://arxiv.org/abs/1703.03864.

    Args:
        scores: [P].
    """
    places = torch.arange(len(scores), dtype=scores.dtype, device=scores.device)
    return _by_rank(scores, places) / max(len(scores) - 1, 1) - 0.5


def utilities(scores: Tensor) -> Tensor:
    """Return 1/P - u, where u = max(0, log(P/2 + 1) - log(rank)), scaled to the sum 1; rank 1 is the best.

    Reference: Wierstra et al. 2014, https://jmlr.org/papers/v15/wierstra14a.html.

    Args:
        scores: [P].
    """
    count = len(scores)
    ranks = torch.arange(1, count + 1, device=scores.device)
    by_rank = (torch.log(torch.tensor(count / 2 + 1)) - ranks.log()).clamp_min(0)
    return -_by_rank(scores, (by_rank / by_rank.sum() - 1 / count).to(scores))


class Softmax:
    """The shaping -softmax(-score / T).

    Args:
        temperature: T in units of the score, or "auto" for the standard deviation of the scores of the generation. Then
            the step does not depend on the scale of the score.
    """

    def __init__(self, temperature: float | Literal["auto"]) -> None:
        if not isinstance(temperature, str):
            check_positive("temperature", temperature)
        self.temperature = temperature

    def __call__(self, scores: Tensor) -> Tensor:
        """Return weights [P], at most 0 and with the sum -1; 0 for members whose score is NaN or infinite.

        Args:
            scores: [P].
        """
        # nan_to_num: if no score is finite, softmax over -inf alone is NaN, and the step shall be 0.
        finite = scores.isfinite()
        temperature = self._auto(scores, finite) if isinstance(self.temperature, str) else self.temperature
        return -torch.where(finite, -scores / temperature, -torch.inf).softmax(0).nan_to_num(0.0)

    @staticmethod
    def _auto(scores: Tensor, finite: Tensor) -> Tensor:
        # Scores that are not finite are replaced by the mean of the others, and the variance then divides by the number
        # of the others. To select the others, the CPU would wait for the GPU.
        mean = torch.where(finite, scores, 0.0).sum() / finite.sum()
        spread = torch.where(finite, scores, mean).std(correction=0) * (len(scores) / finite.sum()).sqrt()
        return torch.where(spread > torch.finfo(scores.dtype).tiny, spread, 1.0)  # 1 for NaN, too: no score is finite


def _worst_last(scores: Tensor) -> Tensor:
    return torch.where(scores.isfinite(), scores, torch.inf)


def _finite(scores: Tensor) -> Tensor:
    """The scores, where those that are not finite are replaced by the worst finite score, or by 0 without any."""
    # A mask and not a selection: to learn the shape of a selection, the CPU would wait for the GPU.
    finite = scores.isfinite()
    worst = torch.where(finite, scores, -torch.inf).max()
    return torch.where(finite, scores, torch.where(worst.isfinite(), worst, 0.0))


def _by_rank(scores: Tensor, values: Tensor) -> Tensor:
    """The value of each score's rank, [P], with the best score first; equal scores share the mean of their values."""
    # Equal scores must get equal weights. Otherwise the order of `sort` among them, which is arbitrary, would decide.
    ordered, order = _worst_last(scores).sort()
    # The number of each score's group, [P]. There are up to P groups; empty ones at the end do not matter.
    group = torch.cat([torch.zeros_like(order[:1]), (ordered[1:] != ordered[:-1]).cumsum(0)])
    sums = torch.zeros_like(scores).index_add_(0, group, values)
    sizes = torch.zeros_like(scores).index_add_(0, group, torch.ones_like(scores))
    return torch.empty_like(scores).index_copy_(0, order, (sums / sizes)[group])


SHAPINGS: dict[str, Shaping] = {
    "centred_ranks": centred_ranks,
    "zscore": zscore,
    "utilities": utilities,
    "raw": raw,
}
