"""Remove folders that killed processes left behind: unfinished ones, which were to be renamed when they are whole."""

import shutil
import time
from contextlib import suppress
from pathlib import Path

_ABANDONED_SECONDS = 24 * 3600.0


def remove_abandoned(place: Path, pattern: str) -> None:
    """Remove folders in `place` that match `pattern` if nobody has written to them for a day.

    A younger folder may belong to a process that is still writing.

    Args:
        place: the folder that contains them.
        pattern: as for `Path.glob`.
    """
    for folder in place.glob(pattern):
        # Another process may remove the folder at the same time.
        with suppress(OSError):
            latest = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
            if time.time() - latest > _ABANDONED_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
