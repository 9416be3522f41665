"""What killed processes leave behind: folders that were to be renamed once they are whole."""

import shutil
import time
from contextlib import suppress
from pathlib import Path

_ABANDONED_SECONDS = 24 * 3600.0


def drop_abandoned(place: Path, pattern: str) -> None:
    """Remove folders in `place` that match, and to which nobody has written for a day."""
    for leftover in place.glob(pattern):
        with suppress(OSError):
            latest = max(path.stat().st_mtime for path in (leftover, *leftover.iterdir()))
            if time.time() - latest > _ABANDONED_SECONDS:
                shutil.rmtree(leftover, ignore_errors=True)
