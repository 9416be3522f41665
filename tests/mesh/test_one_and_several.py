"""One process and several processes train to the same weights, for every rule in every mode that it has."""

from functools import cache
from pathlib import Path

import pytest
import torch

from tests.mesh.cases import CASES, REPLICAS, Case, trained
from tests.mesh.helpers import made_once, run_processes

WORKER = "tests.mesh.worker"
FEW = [
    case for case in CASES if str(case) in ("predsim-data", "mono_forward-blocks", "noprop_dt-blocks", "es-population")
]


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    return made_once(tmp_path_factory, "two", lambda folder: run_processes(WORKER, 2, folder, CASES))


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> Path:
    return made_once(tmp_path_factory, "three", lambda folder: run_processes(WORKER, 3, folder, FEW))


@pytest.fixture(scope="module")
def three_of_all(tmp_path_factory) -> Path:
    return made_once(tmp_path_factory, "three-of-all", lambda folder: run_processes(WORKER, 3, folder, CASES))


@pytest.fixture(scope="module")
def four(tmp_path_factory) -> Path:
    return made_once(tmp_path_factory, "four", lambda folder: run_processes(WORKER, 4, folder, REPLICAS))


@cache
def alone(case: Case) -> dict[str, torch.Tensor]:
    return trained(case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_processes_and_one_have_the_same_weights(case, two):
    compare(case, two)


@pytest.mark.parametrize("case", FEW, ids=str)
def test_three_processes_and_one_have_the_same_weights(case, three):
    compare(case, three)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_three_processes_and_one_have_the_same_weights_by_every_rule(case, three_of_all):
    compare(case, three_of_all)


@pytest.mark.parametrize("case", REPLICAS, ids=str)
def test_four_processes_split_parts_and_rows(case, four):
    compare(case, four)


def compare(case: Case, folder: Path) -> None:
    """All processes have the same bits, and the weights of one process; blocks have its bits."""
    first, *others = [torch.load(file) for file in sorted(folder.glob(f"{case}.*.pt"))]
    assert others
    for other in others:
        assert all(torch.equal(other[name], tensor) for name, tensor in first.items())
    expected = alone(case)
    assert first.keys() == expected.keys()
    tolerance = 0 if case.mode == "blocks" and case.variant != "replicas" else 1e-12
    for name, tensor in expected.items():
        torch.testing.assert_close(first[name], tensor, rtol=tolerance, atol=tolerance)
