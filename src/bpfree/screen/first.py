"""The choice which process shows something: of several that torchrun started, only the first one."""

import os

LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR")
"""The environment variables by which torchrun tells a process about the others."""


def is_first() -> bool:
    """Return True unless torchrun started this process as another one than the first."""
    return any(name not in os.environ for name in LAUNCHED) or os.environ["RANK"] == "0"
