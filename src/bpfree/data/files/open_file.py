"""A file that is read by offset. Any number of threads and forked processes may read it at the same time."""

import os
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from threading import Lock

from bpfree.disk.paths import open_regular
from bpfree.errors import UserError


class OpenFile:
    """A regular file that stays open as long as this object exists.

    Args:
        path: of the file.

    Raises:
        UserError: the path is a folder, a named pipe, a socket or a device.
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open_regular(path, buffering=0)
        self._lock = Lock()

    def __del__(self) -> None:
        # Python calls __del__ also for an object whose __init__ failed, for example because `open` did.
        if hasattr(self, "_file"):
            self._file.close()

    def announce(self, pieces: Iterable[tuple[int, int]]) -> None:
        """Tell the system which pieces (offset, bytes) will be read, so that the disk fetches them at once."""
        if hasattr(os, "posix_fadvise"):
            for place, size in pieces:
                os.posix_fadvise(self._file.fileno(), place, size, os.POSIX_FADV_WILLNEED)

    def read(self, place: int, size: int) -> bytearray:
        """Return `size` bytes from the offset `place` on; see `fill`."""
        content = bytearray(size)
        self.fill(memoryview(content), place)
        return content

    def fill(self, into: memoryview, place: int) -> None:
        """Read bytes from the offset `place` on until the memory is full.

        Raises:
            UserError: the file is shorter than before, because somebody has changed it.
        """
        while into:  # a read may return fewer bytes than asked for
            if hasattr(os, "preadv"):  # it takes the place as an argument, so threads share no file position
                count = os.preadv(self._file.fileno(), [into], place)
            else:
                with self._lock:
                    self._file.seek(place)
                    count = self._file.readinto(into) or 0  # type: ignore[attr-defined]
            if not count:
                raise UserError(f"{self.path}: truncated while it was in use. Start again")
            into, place = into[count:], place + count


class OpenFiles:
    """Many files, of which those that were used last stay open.

    Args:
        paths: the files.
        most: how many stay open, at least 1. A system allows a process a few hundred.
    """

    def __init__(self, paths: Sequence[Path], most: int = 64) -> None:
        self.paths = paths
        self.most = most
        self.opened = 0  # how often a file was opened, for measurements
        self._open: OrderedDict[int, OpenFile] = OrderedDict()
        self._lock = Lock()

    def get(self, number: int) -> OpenFile:
        """Return a file by its place among the paths, open.

        Raises:
            UserError: the file cannot be opened.
        """
        with self._lock:
            if number in self._open:
                self._open.move_to_end(number)
                return self._open[number]
            try:
                self._open[number] = file = OpenFile(self.paths[number])
            except OSError as error:
                raise UserError(f"{self.paths[number]}: cannot be read ({error.strerror or error})") from error
            self.opened += 1
            # A file that a thread still reads is closed when the thread drops it.
            if len(self._open) > self.most:
                self._open.popitem(last=False)
            return file
