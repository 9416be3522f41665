"""Fixed matrices are cast and reordered once, and again when they change."""

import torch

from bpfree.local.channels_last import project, rows
from bpfree.local.fixed import FixedMatrices


def test_the_copy_is_made_once_and_follows_the_matrix():
    fixed, matrix = FixedMatrices(), torch.randn(3, 2 * 4 * 4)
    h = torch.randn(5, 2, 4, 4).contiguous(memory_format=torch.channels_last)
    assert fixed.laid("a", matrix, h.contiguous()) is matrix
    laid = fixed.laid("a", matrix, h)
    torch.testing.assert_close(rows(h) @ laid.T, project(h, matrix))
    assert fixed.laid("a", matrix, h) is laid
    with torch.autocast("cpu", torch.bfloat16):
        cast = fixed.laid("a", matrix)
        assert cast.dtype == torch.bfloat16
        assert torch.equal(cast, matrix.bfloat16())
        assert fixed.laid("a", matrix.double()).dtype == torch.float64
        matrix.mul_(2)
        assert torch.equal(fixed.laid("a", matrix), matrix.bfloat16())
