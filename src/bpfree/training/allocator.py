"""Settings of the C library: freed memory serves the next tensors, and small blocks do not lie in its way.

Torch asks glibc for aligned blocks. glibc cuts such a block out of a larger one. Before version 2.41 it keeps the small
rests at both ends in two caches, where they do not join the block again when it is freed. So a freed block is a little
too small for the next tensor of its size, and the process grows although few tensors are alive. For rules whose memory
does not grow with depth, the process then took two to three times as much with 32 layers as with 4.

Only bpfree's commands and the processes that they start use these settings, because a library must not change its
user's allocator.
"""

import ctypes
import os
import sys
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt(3)
_LARGEST = 2**31 - 1  # mallopt takes an int
_VARIABLE = "GLIBC_TUNABLES"
_NO_CACHES = "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"


def keep_freed_memory() -> None:
    """Let the process keep up to 2 GiB of freed memory instead of giving it back to the system.

    By default glibc gives each large tensor back when it is freed. In the next step the system has to map and clear its
    pages again; for convolutional nets this was a sixth of the time. The peak of memory does not change. Without glibc
    it does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl does not have it
    if mallopt is not None:
        # Both: above the first threshold a block is a mapping of its own, which free() always returns; the second
        # decides when free() returns the end of the heap.
        mallopt(_MMAP_THRESHOLD, _LARGEST)
        mallopt(_TRIM_THRESHOLD, _LARGEST)


def without_caches() -> dict[str, str]:
    """Return the environment variable with which a new process has none of glibc's caches of small blocks.

    Returns:
        The variable and its value. Nothing if glibc is absent or does not need it, or if the environment sets
        tunables of malloc already: whoever set them decides.
    """
    given = os.environ.get(_VARIABLE, "")
    if not (2, 26) <= _glibc() < (2, 41) or "glibc.malloc." in given:
        return {}
    return {_VARIABLE: f"{given}:{_NO_CACHES}".strip(":")}


def restart_without_caches() -> None:
    """Start the running program again in this process, with the variable that `without_caches` returns.

    glibc reads it only when a program starts. Call this before anything is imported that takes time. It does nothing if
    the variable is not needed, or if the program cannot be started again.
    """
    variable = without_caches()
    if variable and sys.executable:
        with suppress(OSError):
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | variable)


def _glibc() -> tuple[int, int]:
    """Return the version of glibc; (0, 0) if the C library is another one."""
    # AttributeError: Windows. ValueError and OSError: other C libraries do not know the name, or have no value for it.
    with suppress(AttributeError, ValueError, OSError):
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
        if name == "glibc":
            major, minor = version.split(".")[:2]
            return int(major), int(minor)
    return 0, 0
