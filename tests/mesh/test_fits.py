"""`bpfree.fit` and a plain loop: several processes end as one does, in weights, records, trackers and the test."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bpfree.runs import checkpoint
from tests.helpers import same, without_pictures
from tests.mesh.fits import FITS, outcome
from tests.runs.test_run import power_cut

EPOCHS, STEPS = 10, 8  # epochs, and steps in each


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    """A folder with a run that one process began."""
    folder = tmp_path_factory.mktemp("begun")
    patch = pytest.MonkeyPatch()
    with without_pictures(), power_cut(patch, 5 * STEPS + 4), pytest.raises(RuntimeError, match="power cut"):
        FITS["on_disk"](folder)
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, dict[str, Any]]:
    """What comes of the trainings in one process, by their names."""
    folder = tmp_path_factory.mktemp("alone")
    with without_pictures():
        return {name: outcome(name, folder) for name in FITS}


@pytest.fixture(scope="module")
def worked(begun, tmp_path_factory) -> Path:
    """The folder in which two processes have trained. They go on with the run that one process began."""
    folder = tmp_path_factory.mktemp("together")
    shutil.copytree(begun / "run", folder / "run")
    run = [sys.executable, "-m", "tests.mesh.fits"]
    started = [
        subprocess.Popen([*run, str(rank), "2", str(folder)], stderr=subprocess.PIPE, text=True) for rank in range(2)
    ]
    errors = [process.communicate(timeout=300)[1] for process in started]
    assert not any(process.returncode for process in started), "\n".join(errors)
    return folder


@pytest.fixture(scope="module")
def together(worked) -> list[dict[str, dict[str, Any]]]:
    """What comes of the trainings in two processes, by rank."""
    return [{name: torch.load(worked / f"{name}.{rank}.pt", weights_only=False) for name in FITS} for rank in range(2)]


def expect_close(found: Any, expected: Any) -> None:
    """Equal plain values, where numbers may differ by rounding; losses of records are rounded to float32."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            expect_close(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for pair in zip(found, expected, strict=True):
            expect_close(*pair)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)
    elif isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    else:
        assert found == expected


@pytest.mark.parametrize("name", [name for name in FITS if name not in ("own_norms", "interrupted", "stopped_within")])
def test_two_processes_end_as_one(name, alone, together):
    timed = {"seconds", "mesh"}
    expected = {key: value for key, value in alone[name].items() if key not in timed}
    expect_close({key: value for key, value in together[0][name].items() if key not in timed}, expected)


@pytest.mark.parametrize("name", FITS)
def test_all_processes_return_the_same(name, together):
    first, second = (each[name] for each in together)
    assert same(first["weights"], second["weights"])
    assert {**first, "weights": None} == {**second, "weights": None}


def test_norms_of_each_process_are_others_than_those_of_all(alone, together):
    assert not torch.allclose(
        together[0]["own_norms"]["weights"]["2.weight"], alone["own_norms"]["weights"]["2.weight"]
    )


def test_of_two_processes_the_first_one_logs(together, worked):
    assert [path.name for path in (worked / "boards").iterdir()] == ["1"]


def test_a_tracker_of_one_process_stops_all_after_the_same_step(alone, together):
    assert alone["stopped"]["ended"][2] == 3 * STEPS
    assert alone["stopped_within"]["ends"] == [(11, 2, "enough"), (16, 2, "enough"), (11, 2, "enough")]
    for steps, epochs, why in together[0]["stopped_within"]["ends"]:
        assert steps in (11, 12, 16, 17)
        assert epochs == -(-steps // STEPS)
        assert why == "enough"


def test_ctrl_c_in_one_process_stops_all_after_the_same_step(alone, together):
    assert alone["interrupted"]["stops"] == [3, 8, 8, 80, 80]
    # The others learn of it by the messages of the next step, or of the end of the epoch.
    assert [each["interrupted"]["stops"] for each in together] == [[4, 8, 8, 80, 80]] * 2


def test_a_training_that_diverges_is_the_same_error_everywhere(together):
    first, second = (each["diverged"]["error"] for each in together)
    assert first == second
    assert first.startswith("training diverged")


def test_a_process_that_ends_is_missed(worked):
    lost = (worked / "lost").read_text()
    assert lost.startswith("another process of this training has ended or cannot be reached")


def test_the_result_says_how_many_processes_and_how(alone, together):
    assert alone["everything"]["mesh"] == (1, None)
    assert together[0]["everything"]["mesh"] == (2, "data")
    assert together[0]["population"]["mesh"] == (2, "population")


def test_the_trainings_test_what_they_should(alone, begun):
    for name in ("everything", "on_disk"):
        weights, best, steps = alone[name]["ended"]
        assert weights == "best"
        assert best * STEPS < steps < EPOCHS * STEPS, "it stopped early"
    assert len({record["tracker"] for record in alone["everything"]["tracked"]}) == 4
    begun_at = checkpoint.read_state(begun / "run" / "last.ckpt").progress
    assert begun_at.best_epoch == alone["on_disk"]["ended"][1], "the second process must find the best weights on disk"
