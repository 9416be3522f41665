"""The service of `bpfree watch`: the curves of runs while they train."""

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path

from fastapi import FastAPI
from pydantic import BaseModel

from bpfree._version import __version__
from bpfree.errors import UserError
from bpfree.serve.base import base
from bpfree.serve.found import Found, find_runs
from bpfree.serve.limits import Limits
from bpfree.serve.live import Follower, Live
from bpfree.serve.refusal import DOCUMENTED

_FILES = ("page.css", "common.js", "chart.js", "watch.js", "icon.svg")


class Watched(BaseModel):
    """The runs at this moment."""

    version: str
    mark: str
    runs: list[Live]


def watching(paths: Sequence[Path], limits: Limits, hosts: Collection[str] = ()) -> FastAPI:
    """Return the service that follows runs.

    Args:
        paths: run folders, or folders of runs, in which more runs may appear.
        limits: of requests.
        hosts: names that a request may give as its host, beside IP addresses and localhost.

    Raises:
        UserError: a folder does not exist or holds no run.
    """
    first, follower = find_runs(paths), Follower()
    app, _ = base("bpfree watch", "watch.html", _FILES, limits, hosts, lambda: len(first))

    # Not async: FastAPI then calls it in a thread, and a slow disk does not stop the server.
    @app.get("/api/watch", summary="Return all runs as they are now", responses={403: DOCUMENTED[403]})
    def watch() -> Watched:
        runs = [live for found in _found_now(paths, first) if (live := _live(follower, found)) is not None]
        # Ages change all the time, so they do not count as news.
        news = "".join(live.model_dump_json(exclude={"age", "seconds_left"}) for live in runs)
        return Watched(version=__version__, mark=hashlib.sha256(news.encode()).hexdigest()[:16], runs=runs)

    return app


def _found_now(paths: Sequence[Path], first: list[Found]) -> list[Found]:
    """Return the runs that are there now; those of the start if a folder cannot be read at this moment."""
    try:
        return find_runs(paths)
    except (UserError, OSError):
        return first


def _live(follower: Follower, found: Found) -> Live | None:
    """Return a run as it is now; None if its folder is gone or cannot be read."""
    try:
        return follower(found)
    except (UserError, OSError):
        return None
