"""Forward mode: derivatives along directions that go through a net together with its values."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from bpfree.errors import UserError


@contextmanager
def dual_level() -> Iterator[None]:
    """Switch forward mode on; the first use of it compiles with what torch itself calls deprecated."""
    with warnings.catch_warnings(), forward_ad.dual_level():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


@contextmanager
def forward_derivatives() -> Iterator[None]:
    """Choose operations that have a derivative in forward mode, for a pass of a net.

    Raises:
        UserError: torch has no forward-mode derivative of an operation of the net.
    """
    try:
        with sdpa_kernel(SDPBackend.MATH):  # the only attention of torch that has one
            yield
    except NotImplementedError as error:
        raise UserError(
            "net: torch has no forward-mode derivative of one of its operations "
            f"({' '.join(str(error).split('.')[0].split())}). Use another net (gru in place of lstm), or another rule"
        ) from error
