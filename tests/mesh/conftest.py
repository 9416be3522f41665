"""A run of two processes that nothing disturbs, with which others are compared."""

from pathlib import Path
from typing import NamedTuple

import pytest

from tests.mesh.helpers import made_once
from tests.mesh.torchrun import finished, started, training


class Whole(NamedTuple):
    """The folder of the run, and what was printed."""

    run: Path
    out: str
    errors: str


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Whole:
    def make(folder: Path) -> None:
        out, errors = finished(started(*training(folder / "run")))
        (folder / "out").write_text(out)
        (folder / "errors").write_text(errors)

    folder = made_once(tmp_path_factory, "whole", make)
    return Whole(folder / "run", (folder / "out").read_text(), (folder / "errors").read_text())
