"""Shared by all tests: the device, small nets, real data."""

import os
import signal
from collections.abc import Iterator

os.environ["OMP_NUM_THREADS"] = "1"  # for processes that tests start: two workers on two cores, and equal bits
if os.environ.get("BPFREE_TEST_DEVICE", "cpu") == "cpu":  # without a GPU, Triton interprets its kernels
    os.environ.setdefault("TRITON_INTERPRET", "1")
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # of a suite in the background; what it starts is to hear Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
import torch

from bpfree.data import Dataset
from bpfree.data.sets.digits import digits
from bpfree.types import Batch
from tests.helpers import without_pictures

torch.set_num_threads(1)

DEVICE = torch.device(os.environ.get("BPFREE_TEST_DEVICE", "cpu"))
if DEVICE.type == "cuda":  # a resume is compared with a whole run to the bit
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False

BY_THEMSELVES = (
    "test_certify_door.py",
    "test_embeddings.py",
    "test_freezing.py",
    "test_regress.py",
    "test_sequence.py",
    "test_trackers.py",
)
"""Files with trainings that choose the device by themselves: the GPU where there is one."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`-m device` selects the tests that are worth running on a GPU."""
    for item in items:
        on_device = "device" in getattr(item, "fixturenames", ())
        if on_device or item.path.name in BY_THEMSELVES or "resume" in item.name:
            item.add_marker("device")


@pytest.fixture(scope="session")
def device() -> torch.device:
    """From BPFREE_TEST_DEVICE, so that the same tests run on cuda or mps."""
    return DEVICE


@pytest.fixture(scope="session")
def digits_data(tmp_path_factory) -> Dataset:
    return digits(tmp_path_factory.mktemp("unused"))


@pytest.fixture
def undrawn() -> Iterator[pytest.MonkeyPatch]:
    """Runs are written without their pictures; for tests of something else."""
    with without_pictures() as patch:
        yield patch


@pytest.fixture
def at_once() -> Iterator[None]:
    """A resume does not wait for the next second, by which TensorBoard alone tells the files of a run apart."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bpfree.runs.keeper.wait_for_a_new_second", lambda _: None)
        yield


@pytest.fixture
def batch(digits_data: Dataset, device: torch.device) -> Batch:
    """32 real digits in float64, roughly standardised."""
    x = (digits_data.train.x[:32].double() - 5) / 6
    return Batch(x.to(device), digits_data.train.y[:32].to(device))
