"""Fixed matrices in the form in which products read them, made once and not in every step."""

from typing import NamedTuple

import torch
from torch import Tensor

from bpfree.grad import product_type
from bpfree.local.channels_last import columns, lies_channels_last


class _Kept(NamedTuple):
    matrix: Tensor
    version: int
    turned: bool
    laid: Tensor


class FixedMatrices:
    """Copies of a rule's fixed matrices, cast as autocast casts them and reordered for maps that lie channels last.

    Without autocast and channels last there are no copies. A copy is made again when its matrix has changed.
    """

    def __init__(self) -> None:
        self._kept: dict[str, _Kept] = {}

    def laid(self, name: str, matrix: Tensor, h: Tensor | None = None) -> Tensor:
        """Return a matrix in the type that products multiply now.

        Args:
            name: under which the copy is kept.
            matrix: [D, H], without a gradient.
            h: [B, ...], features with H values a sample. Columns come in their memory order, as in `columns`. None to
                leave the columns as they are.
        """
        dtype, turned = product_type(matrix), h is not None and lies_channels_last(h)
        if dtype == matrix.dtype and not turned:
            return matrix
        kept = self._kept.get(name)
        known = kept is not None and kept.matrix is matrix and kept.version == matrix._version
        if kept is None or not known or kept.turned != turned or kept.laid.dtype != dtype:
            # Not in inference mode, since a training may read the copy later.
            with torch.inference_mode(False), torch.no_grad():
                laid = (matrix if h is None else columns(matrix, h)).to(dtype)
            kept = self._kept[name] = _Kept(matrix, matrix._version, turned, laid)
        return kept.laid
