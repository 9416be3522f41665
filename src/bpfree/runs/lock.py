"""A lock on a run folder, so that one process at a time writes to it. The system frees it when its process dies."""

import os
import warnings
from pathlib import Path

from filelock import FileLock, Timeout

from bpfree.disk.atomic import refuse_to_replace, write_error
from bpfree.errors import UserError

LOCK = ".lock"  # it is never removed: a process that had just opened it would then lock a file that nobody else sees


class FolderLock:
    """An exclusive lock on a folder.

    It belongs to the process that took it. A forked child neither keeps nor releases the lock of its parent.

    Args:
        folder: exists and can be written.

    Raises:
        UserError: another process holds the lock, or the lock file cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / LOCK
        refuse_to_replace(path)
        self._owner = os.getpid()
        # Not local to a thread: another thread than the one that took the lock may release it.
        self._lock = FileLock(path, timeout=0, thread_local=False)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise UserError(
                f"{folder}: another process is writing to it. Wait until it ends, or choose another folder"
            ) from error
        except NotImplementedError:
            warnings.warn(f"{folder}: its disk has no locks, so take care that one process writes there", stacklevel=2)
        except OSError as error:
            raise write_error(path, error) from error

    def release(self) -> None:
        """Release the lock. A second call does nothing."""
        # A forked child has a copy of this object; its release would free the lock that the parent still needs.
        if os.getpid() == self._owner and self._lock.is_locked:
            self._lock.release()

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
