"""Notes that the processes of one call of torchrun share. They stay when torchrun starts its processes again.

torchrun has a key-value store, by which its processes find each other. It lives as long as torchrun itself.
"""

import os
import socket
import time
import uuid
from contextlib import suppress
from datetime import timedelta
from functools import cache

from torch.distributed import TCPStore  # type: ignore[attr-defined]

_CONNECT = timedelta(seconds=60)
_LONGEST = 600.0  # seconds until the first process is there


def note(key: str, text: str) -> None:
    """Write a note for all processes of this call of torchrun, or replace it; do nothing without torchrun.

    Args:
        key: the name of the note.
        text: its text.
    """
    if (store := _store()) is not None:
        with suppress(RuntimeError):  # torchrun has ended
            store.set(f"bpfree/{key}", text)


def noted(key: str, *, wait: float = 0.0) -> str | None:
    """Return the text of a note; None if there is none, or without torchrun.

    Args:
        key: the name of the note.
        wait: seconds to wait until another process has written it.
    """
    if (store := _store()) is None:
        return None
    name = f"bpfree/{key}"
    with suppress(RuntimeError):  # of the wait, or because torchrun has ended
        if wait:
            store.wait([name], timedelta(seconds=wait))
        if store.check([name]):
            return bytes(store.get(name)).decode()
    return None


def claim(key: str) -> bool:
    """Return True in the first process that calls this with a key, and without torchrun in every process.

    Args:
        key: the name of what only one process is to do.
    """
    if (store := _store()) is not None:
        with suppress(RuntimeError):  # torchrun has ended
            return bool(store.add(f"bpfree/{key}", 1) == 1)
    return True


def attempt() -> int:
    """Return how often torchrun has started its processes again after a failure; 0 without torchrun."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def attempts_left() -> int:
    """Return how often torchrun would start its processes again after a failure; 0 without torchrun."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) - attempt()


def meeting_store(rank: int) -> TCPStore | None:
    """Return a store by which the processes of this start of torchrun find each other; None without torchrun.

    torchrun's own store still has the addresses of processes that have died. After a restart a process may read one of
    them, and wait for it in vain: https://github.com/pytorch/pytorch/issues/135712. So the first process opens a store
    of its own. The note of its place may be old, too, but then nobody answers there, or with another name.

    Args:
        rank: of this process.

    Raises:
        TimeoutError: the first process does not come.
    """
    if _store() is None:
        return None
    host = os.environ["MASTER_ADDR"]  # where the first process is
    if rank == 0:
        store, name = TCPStore(host, 0, is_master=True, wait_for_workers=False), uuid.uuid4().hex
        store.set("name", name)
        note("meet", f"{store.port} {name}")
        return store
    end = time.monotonic() + _LONGEST
    while time.monotonic() < end:
        with suppress(OSError, RuntimeError):  # nobody answers
            port, name = (noted("meet", wait=_LONGEST) or "0 none").split()
            socket.create_connection((host, int(port)), timeout=_CONNECT.total_seconds()).close()
            store = TCPStore(host, int(port), is_master=False, wait_for_workers=False, timeout=_CONNECT)
            if store.check(["name"]) and store.get("name") == name.encode():
                return store
        time.sleep(0.05)
    raise TimeoutError(f"the first process of this training did not come within {_LONGEST:.0f} s")


@cache
def _store() -> TCPStore | None:
    """Return the store of torchrun; None without torchrun, or if it cannot be reached."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        return TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=_CONNECT)
    except RuntimeError:
        return None
