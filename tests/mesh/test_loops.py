"""`fit` in two processes records what one process records."""

import json
from pathlib import Path

import pytest

from tests.mesh.helpers import made_once, run_processes
from tests.mesh.loops import RUNS, run


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return made_once(tmp_path_factory, "loops", lambda folder: run_processes("tests.mesh.loops", 2, folder, RUNS))


@pytest.mark.parametrize("rule", RUNS)
def test_two_processes_record_what_one_records(rule, folder):
    alone = run(rule)
    both = [json.loads((folder / f"{rule}.{rank}.json").read_text()) for rank in (0, 1)]
    for found in both:
        assert found["norm"] == pytest.approx(alone["norm"], rel=1e-12)
        for own, expected in zip(found["history"], alone["history"], strict=True):
            assert own.keys() == expected.keys()
            assert own["train"] == pytest.approx(expected["train"], rel=1e-5)  # sums of float32 in another order
            assert own["validation"] == pytest.approx(expected["validation"], rel=1e-10)
    held = sum(found["held"] for found in both)
    assert held == (alone["held"] if RUNS[rule]["mesh"] == "blocks" else 2 * alone["held"])
