"""A run of two processes that nothing disturbs, with which others are compared."""

from pathlib import Path
from typing import NamedTuple

import pytest

from tests.mesh.torchrun import finished, started, training


class Whole(NamedTuple):
    """The folder of the run, and what was printed."""

    run: Path
    out: str
    errors: str


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Whole:
    run = tmp_path_factory.mktemp("several") / "whole"
    return Whole(run, *finished(started(*training(run))))
