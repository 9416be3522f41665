"""A setting of the C library: memory that is freed in one training step serves the next."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt(3)
_LARGEST = 2**31 - 1  # mallopt takes an int


def keep_freed_memory() -> None:
    """Let the process keep up to 2 GiB of freed memory instead of giving it back to the system.

    By default glibc gives each large tensor back when it is freed. In the next step the system has to map and clear its
    pages again; for convolutional nets this was a sixth of the time. The peak of memory does not change. Only bpfree's
    commands call this function, because a library must not change its user's allocator. Without glibc it does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl does not have it
    if mallopt is not None:
        # Both: above the first threshold a block is a mapping of its own, which free() always returns; the second
        # decides when free() returns the end of the heap.
        mallopt(_MMAP_THRESHOLD, _LARGEST)
        mallopt(_TRIM_THRESHOLD, _LARGEST)
