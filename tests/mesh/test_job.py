"""Notes in the store of torchrun, and the place where processes meet after a restart."""

import threading

import pytest
from torch.distributed import TCPStore

from bpfree.mesh import job
from bpfree.runs.folder import CONFIG, goes_on


@pytest.fixture
def store(monkeypatch):
    """A store as torchrun has one."""
    served = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    for name, value in {"MASTER_ADDR": "localhost", "MASTER_PORT": served.port}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    job._store.cache_clear()
    yield served
    job._store.cache_clear()


def test_notes(store):
    assert job.noted("a") is None
    assert job.noted("a", wait=0.01) is None
    job.note("a", "one")
    job.note("a", "two")
    assert job.noted("a", wait=5) == "two"
    assert [job.claim("b"), job.claim("b"), job.claim("c")] == [True, False, True]


def test_without_torchrun_there_are_no_notes(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    job._store.cache_clear()
    job.note("a", "one")
    assert job.noted("a", wait=5) is None
    assert job.meeting_store(0) is None
    assert job.attempts_left() == 0


def closed_port() -> int:
    return TCPStore("localhost", 0, is_master=True, wait_for_workers=False).port


def test_an_old_place_is_not_where_processes_meet(store):
    """The note leads to nobody, then to somebody else, and at last to the first process."""
    job.note("meet", f"{closed_port()} gone")
    found = []
    second = threading.Thread(target=lambda: found.append(job.meeting_store(1)))
    second.start()
    other = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    other.set("name", "other")
    job.note("meet", f"{other.port} another")
    first = job.meeting_store(0)
    second.join(timeout=60)
    first.set("greeting", "hello")
    assert found[0].get("greeting") == b"hello"


def test_a_run_goes_on_if_this_call_of_torchrun_began_it(store, tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    theirs.mkdir()
    (theirs / CONFIG).touch()
    assert not goes_on(ours)
    ours.mkdir()
    (ours / CONFIG).touch()
    assert goes_on(ours)
    assert not goes_on(theirs)
    assert not goes_on(theirs), "it was refused before, and is again"
    assert goes_on(theirs, resume=True)
