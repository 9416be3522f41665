"""The memory that data may take: a limit of the user, or a quarter of the machine's or container's memory."""

import os
from pathlib import Path

from bpfree.errors import UserError

COPIES = 2  # of samples in memory: the data set's own, and the one that is made when validation is split off
_CONTAINERS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_MIB = 1 << 20
_UNKNOWN = 8192 * _MIB  # where the system does not tell


def fits(size: int, memory_limit: float | None) -> bool:
    """Return True if samples may be held in memory.

    Args:
        size: the number of bytes of the samples.
        memory_limit: in MiB; None for a quarter of the memory.

    Raises:
        UserError: the limit is below 0.
    """
    if memory_limit is None:
        return COPIES * size <= memory_bytes() // 4
    if not memory_limit >= 0:
        raise UserError(f"data.memory_limit: found {memory_limit}, allowed: MiB, 0 for nothing that can stay in files")
    return COPIES * size <= memory_limit * _MIB


def memory_bytes() -> int:
    """Return the bytes that this process may use: the limit of its container, or else the machine's memory."""
    limits = [_UNKNOWN]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for file in _CONTAINERS:
        text = file.read_text().strip() if file.is_file() else ""
        limits += [int(text)] if text.isdigit() else []
    return min(limits)
