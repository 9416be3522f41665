"""How much of the memory data may take."""

import os
from pathlib import Path

from bpfree.errors import UserError

COPIES = 2  # of samples in memory: the data set's, and that of the split that is carved from it
_CONTAINERS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_MIB = 1 << 20
_UNKNOWN = 8192 * _MIB


def fits(size: int, memory_limit: float | None) -> bool:
    """Whether samples of so many bytes may be in memory.

    Args:
        size: bytes.
        memory_limit: MiB; None for a quarter of the memory.

    Raises:
        UserError: the limit is below 0.
    """
    if memory_limit is None:
        return COPIES * size <= memory_bytes() // 4
    if not memory_limit >= 0:
        raise UserError(f"data.memory_limit: found {memory_limit}, allowed: MiB, 0 for nothing that can stay in files")
    return COPIES * size <= memory_limit * _MIB


def memory_bytes() -> int:
    """The memory that this process may use, as far as the system tells: that of its container, else the machine's."""
    found = [_UNKNOWN]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for file in _CONTAINERS:
        text = file.read_text().strip() if file.is_file() else ""
        found += [int(text)] if text.isdigit() else []
    return min(found)
