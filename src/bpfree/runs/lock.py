"""One process at a time writes a run: a lock on its folder that the system gives back when its process dies."""

import os
import warnings
from pathlib import Path

from filelock import FileLock, Timeout

from bpfree.disk.atomic import refuse_to_replace, write_error
from bpfree.errors import UserError

LOCK = ".lock"  # the file in the folder; it stays there


class FolderLock:
    """An exclusive lock on a folder.

    It is held by the process that took it, and by none of its children: one that forks neither keeps nor gives back
    the lock of its parent.

    Args:
        folder: that is there and can be written.

    Raises:
        UserError: another process holds the lock, or the lock file cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / LOCK
        refuse_to_replace(path)
        self._owner = os.getpid()
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
        """Give it back; a second time does nothing."""
        if os.getpid() == self._owner and self._lock.is_locked:
            self._lock.release()

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
