"""One process and several processes train to the same weights, for every rule in every mode that it has."""

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from tests.mesh.cases import CASES, Case, trained

SIZES = (2, 3)


@pytest.fixture(scope="module", params=SIZES)
def weights(request, tmp_path_factory) -> Path:
    """The folder where several processes have written their weights."""
    folder = tmp_path_factory.mktemp(f"mesh{request.param}")
    run = [sys.executable, "-m", "tests.mesh.worker"]
    started = [
        subprocess.Popen([*run, str(rank), str(request.param), str(folder)], stderr=subprocess.PIPE, text=True)
        for rank in range(request.param)
    ]
    errors = [process.communicate(timeout=300)[1] for process in started]
    assert not any(process.returncode for process in started), "\n".join(errors)
    return folder


@cache
def alone(case: Case) -> dict[str, torch.Tensor]:
    return trained(case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_process_and_several_have_the_same_weights(case, weights):
    expected = alone(case)
    for file in sorted(weights.glob(f"{case}.*.pt")):
        found = torch.load(file)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_all_processes_have_the_same_bits(case, weights):
    first, *others = [torch.load(file) for file in sorted(weights.glob(f"{case}.*.pt"))]
    assert others
    for other in others:
        assert all(torch.equal(other[name], tensor) for name, tensor in first.items())
