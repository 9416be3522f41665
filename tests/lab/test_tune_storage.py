"""A search in a real PostgreSQL server, where there is one on the machine and a driver for it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.lab.tuning import config_file, kill_9_within_a_trial, wait_for
from tests.test_cli import refused, shell

pwd = pytest.importorskip("pwd")  # not on Windows
pytestmark = pytest.mark.usefixtures("undrawn")

DRIVER = next((name for name in ("psycopg", "psycopg2") if find_spec(name)), None)
SERVERS = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))


@pytest.fixture
def postgres():
    """The URL of an empty database of a server of its own, on the loopback."""
    if DRIVER is None:
        pytest.skip("no driver: pip install 'bpfree[postgres]'")
    initdb = SERVERS[-1] if SERVERS else Path(shutil.which("initdb") or "").resolve()
    if not initdb.is_file():
        pytest.skip("no PostgreSQL server on this machine")
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        user = {}
        if os.geteuid() == 0:  # PostgreSQL does not run as root
            nobody = pwd.getpwnam("nobody")
            user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        quiet = {"cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **user}
        subprocess.run([initdb, "-D", "data", "-U", "bpfree", "-A", "trust", "--no-sync"], check=True, **quiet)
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        options = ["-p", str(port), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
        with subprocess.Popen([initdb.with_name("postgres"), "-D", "data", *options], **quiet) as server:
            try:
                asks = [initdb.with_name("pg_isready"), "-h", "127.0.0.1", "-p", str(port)]
                wait_for(lambda: subprocess.run(asks, **quiet).returncode == 0)
                yield f"postgresql+{DRIVER}://bpfree:secret@127.0.0.1:{port}/postgres"
            finally:
                server.send_signal(signal.SIGINT)  # a fast end


def test_machines_that_share_a_database_share_a_study(start, postgres, tmp_path):
    """Two workers with a folder each, as on two machines; one is killed, and both folders could tell the result."""
    from bpfree.lab.tune.plan import make_plan
    from bpfree.lab.tune.store import open_study

    path = config_file(tmp_path)
    outs = [tmp_path / machine / "shared" for machine in ("a", "b")]
    options = ["--storage", postgres, "tune.trials=14", "tune.grace=4"]
    workers = [start(path, out, *options) for out in outs]
    wait_for(lambda: all((out / "trials").exists() for out in outs))
    wait_for(lambda: len(list(tmp_path.glob("*/shared/trials/*/result.json"))) > 4)
    with open_study(make_plan(str(path), out=outs[1], storage=postgres)) as study:
        killed = kill_9_within_a_trial(study, workers[0])
    _, errors = workers[1].communicate()
    assert workers[1].returncode == 0, errors
    found = json.loads((outs[1] / "study.json").read_text())["trials"]
    assert sum(trial["state"] == "complete" for trial in found) == 14
    assert found[killed.number]["state"] == "failed"
    assert [t["params"] for t in found if t["retry_of"] == killed.number] == [killed.params]
    assert len({trial["worker"] for trial in found}) == 2
    assert shell("tune", path, *options, "--out", outs[0]).exit_code == 0
    first, second = (out / "best.yaml" for out in outs)
    assert first.read_text() == second.read_text()
    assert "was begun with train.epochs=2, found 5" in refused(
        "tune", path, *options, "train.epochs=5", "--out", outs[0]
    )
    assert not [f for f in tmp_path.rglob("*.*") if f.suffix in (".json", ".yaml") and "secret" in f.read_text()]
    assert shell("train", first, "--out", tmp_path / "again").exit_code == 0
    best = max(trial["value"] for trial in found if trial["value"] is not None)
    assert json.loads((tmp_path / "again" / "result.json").read_text())["validation"]["accuracy"] == best


@pytest.mark.slow
def test_the_password_reaches_jobs_in_a_file_that_only_its_owner_can_read(postgres, tmp_path):
    """Neither the arguments of a process nor another file of the search has it."""
    from bpfree.lab.jobs.launcher import Launcher
    from bpfree.lab.tune.plan import make_plan
    from bpfree.lab.tune.study import search

    pytest.importorskip("submitit")
    plan = make_plan(str(config_file(tmp_path)), ["tune.trials=4"], out=tmp_path / "out", storage=postgres)
    seen, listed = set(), set()

    def look(finished, best):
        for path in plan.out.rglob("*"):
            with suppress(OSError):  # a folder, or a file that was just replaced
                if b"secret" in path.read_bytes():
                    seen.add((path.parent, oct(path.stat().st_mode & 0o777)))
        listed.update(subprocess.check_output(["ps", "-eo", "args"], text=True).splitlines())

    search(plan, 2, look, Launcher.of("submitit"))
    assert seen == {(plan.out, "0o600")}
    jobs = [line for line in listed if "submitit.core._submit" in line]
    assert jobs
    assert not [line for line in jobs if "secret" in line]
    assert not [path for path in plan.out.rglob("*") if path.is_file() and b"secret" in path.read_bytes()]


@pytest.mark.skipif(DRIVER is None, reason="no driver: pip install 'bpfree[postgres]'")
def test_a_server_that_is_not_there_is_told_without_its_password(tmp_path, monkeypatch):
    monkeypatch.setattr("bpfree.lab.tune.store._TRIES", 1)
    path = config_file(tmp_path)
    url = f"postgresql+{DRIVER}://bpfree:secret@127.0.0.1:1/x"
    line = refused("tune", path, "--storage", url, "--out", tmp_path / "out")
    assert f"storage: postgresql+{DRIVER}://bpfree:***@127.0.0.1:1/x cannot be used" in line
    assert "secret" not in line


def test_a_driver_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    path = config_file(tmp_path)
    url = "postgresql+psycopg://bpfree@127.0.0.1:1/x"
    line = refused("tune", path, "--storage", url, "--out", tmp_path / "out")
    assert "the driver of postgresql+psycopg://bpfree@127.0.0.1:1/x is not installed" in line
    assert "pip install 'bpfree[postgres]'" in line
