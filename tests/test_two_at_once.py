"""Two processes and one run, and disks that are full: the error is one clear line, and nothing is lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import bpfree
from bpfree import UserError
from bpfree.api import resume
from bpfree.disk import atomic
from bpfree.lab.jobs import fork_server
from bpfree.lab.jobs.jobs import Job, run_jobs
from bpfree.runs.config import parse
from bpfree.runs.config_file import load_config
from bpfree.runs.lock import LOCK, FolderLock
from bpfree.runs.train import train
from tests.helpers import same
from tests.runs.test_run import command, power_cut, weights

pytestmark = pytest.mark.usefixtures("undrawn", "at_once")
HOLDS = (
    "import sys, time, pathlib; from bpfree.runs.lock import FolderLock; lock = FolderLock(pathlib.Path(sys.argv[1]))"
)
SMALL = {"data": {"name": "digits", "fraction": 0.3}, "rule": "dfa", "net": {"name": "mlp", "hidden": [8]}}


def wait_for(is_so, seconds=120):
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.01)


def is_locked(folder):
    try:
        FolderLock(folder).release()
    except UserError:
        return True
    return False


def test_of_two_trainings_into_one_new_folder_exactly_one_goes_on(tmp_path):
    """The defect: both ended with 0, and the folder held the weights of one and the config of the other."""
    out = tmp_path / "run"
    args = ["digits/dfa", "train.epochs=60", "--out", out]
    commands = [command("train", *args, f"train.seed={seed}") for seed in (1, 2)]
    processes = [subprocess.Popen(c, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for c in commands]
    errors = [process.communicate()[1] for process in processes]
    codes = [process.returncode for process in processes]
    assert sorted(codes) == [0, 2]
    started, loser = errors[codes.index(2)].strip().splitlines()
    assert started.startswith("training ")
    assert "another process is writing to it" in loser or "holds another run" in loser
    seed = codes.index(0) + 1
    assert json.loads((out / "result.json").read_text())["seed"] == seed
    assert f"seed: {seed}" in (out / "config.yaml").read_text()


def test_who_holds_the_lock_alone_writes_and_dies_with_it(tmp_path, monkeypatch):
    with power_cut(monkeypatch, 8), pytest.raises(RuntimeError):
        train(parse({**SMALL, "train": {"epochs": 3}}), out=tmp_path / "run")
    run, before = tmp_path / "run", weights(tmp_path / "run")
    holder = subprocess.Popen([sys.executable, "-c", f"{HOLDS}; time.sleep(600)", str(run)])
    try:
        wait_for(lambda: is_locked(run))
        with pytest.raises(UserError, match="run: another process is writing to it. Wait until it ends"):
            resume(run)
        with pytest.raises(UserError, match="holds another run"):
            train(parse(SMALL), out=run)
        assert same(before, weights(run))
        bpfree.load(run)  # who only reads needs no lock
    finally:
        holder.kill()
        holder.wait()
    assert resume(run).result["epochs"] == 3
    assert not is_locked(run)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_neither_keeps_the_lock_nor_gives_it_back(tmp_path):
    forks_a_child = (
        f"{HOLDS}; import os\n"
        "child = os.fork()\n"
        "if child == 0:\n    lock.release(); del lock; time.sleep(600)\n"
        "print(child, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", forks_a_child, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    try:
        time.sleep(0.3)
        assert is_locked(tmp_path), "the child gave it back"
        parent.kill()
        parent.wait()
        wait_for(lambda: not is_locked(tmp_path), seconds=5)  # or else the child keeps it
    finally:
        parent.kill()
        os.kill(child, signal.SIGKILL)
        parent.stdout.close()


def test_a_lock_is_given_back_after_an_error_and_two_threads_are_two(tmp_path, monkeypatch):
    with power_cut(monkeypatch, 8), pytest.raises(RuntimeError):
        train(parse(SMALL), out=tmp_path / "run")
    assert not is_locked(tmp_path / "run")
    with FolderLock(tmp_path / "run"), pytest.raises(UserError, match="another process is writing"):
        resume(tmp_path / "run")
    assert (tmp_path / "run" / LOCK).exists()


def test_a_folder_that_can_only_be_read_is_read(tmp_path):
    done = train(parse({**SMALL, "train": {"epochs": 1}}), out=tmp_path / "run")
    for path in (tmp_path / "run").rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    (tmp_path / "run").chmod(0o555)
    try:
        assert bpfree.load(tmp_path / "run").result == done.result
    finally:
        (tmp_path / "run").chmod(0o755)


LIMITED = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))"


def train_limited(limit, *args):
    """Run `bpfree train` in a process whose files may have at most `limit` bytes."""
    code = f"{LIMITED.format(limit)}; from bpfree.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, "train", *map(str, args)], capture_output=True, text=True)


@pytest.mark.skipif(sys.platform == "win32", reason="no such limits")
@pytest.mark.parametrize(
    ("limit", "file"),
    [(3000, "best.ckpt"), pytest.param(26_000, "metrics.jsonl|(last|best).ckpt|tfevents", marks=pytest.mark.slow)],
)
def test_files_that_may_not_grow_are_named_in_one_line(limit, file, tmp_path):
    epochs = 400 if limit > 3000 else 5
    import re

    run = tmp_path / "run"
    net = "net={name: mlp, hidden: [4]}"
    done = train_limited(limit, "digits/dfa", net, "data.fraction=0.2", f"train.epochs={epochs}", "--out", run)
    assert done.returncode == 2, done.stderr
    assert len([line for line in done.stderr.splitlines() if not line.startswith(("training ", "epoch "))]) == 1
    assert re.search(rf"error: .*({file}).*cannot be written \(.*[Ff]ile too large", done.stderr), done.stderr
    assert not list(run.glob(".*.??????*")), "nothing half-written is left"
    assert f"go on with: bpfree train --resume {run}" in done.stderr
    assert bpfree.load(run).metrics or limit == 3000
    assert resume(run).result["epochs"] == epochs


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 400 kB, where the user may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(place)]
    if not shutil.which("mount") or subprocess.run(options, capture_output=True).returncode:
        pytest.skip("this user may not mount a disk")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_loses_nothing(small_disk, undrawn):
    run = small_disk / "run"
    with pytest.raises(UserError, match=r"cannot be written \(.*[Nn]o space left"):
        train(parse({**SMALL, "net": {"name": "mlp", "hidden": [100]}, "train": {"epochs": 50}}), out=run)
    filler = small_disk / "filler"
    shutil.rmtree(run)
    done = train(parse({**SMALL, "train": {"epochs": 1}}), out=run)
    undrawn.undo()
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - 8192))
    with pytest.raises(UserError, match=r"plots/training.png: cannot be written \(.*[Nn]o space left"):
        done.plots()
    assert bpfree.load(run).result == done.result


@pytest.mark.parametrize("what", ["deleted", "renamed"])
def test_a_folder_that_goes_away_while_it_is_written(what, tmp_path, monkeypatch):
    run, real = tmp_path / "run", bpfree.Trainer.step

    def step(self, batch):
        if self.progress.step == 12:
            shutil.rmtree(run) if what == "deleted" else run.rename(tmp_path / "moved")
        return real(self, batch)

    config = parse({**SMALL, "train": {"epochs": 3}})
    with monkeypatch.context() as patch:
        patch.setattr(bpfree.Trainer, "step", step)
        with pytest.raises(UserError, match=r"run/metrics.jsonl: cannot be written .*was deleted or renamed"):
            train(config, out=run)
    if what == "renamed":
        train(config, out=tmp_path / "whole")
        resume(tmp_path / "moved")
        assert same(weights(tmp_path / "whole"), weights(tmp_path / "moved"))


def test_every_writer_names_the_file(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic, "sync", full)
    with pytest.raises(UserError, match=r"a.txt: cannot be written \(No space left on device\)"):
        atomic.write_text(tmp_path / "a.txt", "x")
    monkeypatch.setattr("bpfree.runs.tensor_files.save_file", full)
    with pytest.raises(UserError, match=r"last.ckpt: cannot be written \(No space left on device\)"):
        train(parse(SMALL), out=tmp_path / "run")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    assert [p.name for p in (tmp_path / "run").iterdir()] == [LOCK]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="without forks there is no server")
def test_a_fork_server_that_is_killed_while_it_starts_fails_its_job_alone(tmp_path, monkeypatch):
    config = load_config("digits/dfa", ["train.epochs=1", "data.fraction=0.2"])
    jobs = [Job(name, config, tmp_path / name) for name in ("first", "second")]
    real, started = fork_server.Server.__init__, []

    def start(self):
        real(self)
        started.append(self.process)
        if len(started) == 1:
            self.process.kill()

    monkeypatch.setattr(fork_server.Server, "__init__", start)
    failed = run_jobs(jobs, 1)
    assert failed == {"first": "its process was killed before it began. The same command tries it again"}
    assert jobs[1].is_over()
    assert run_jobs(jobs, 1) == {}
    assert jobs[0].is_over()


def test_a_job_that_cannot_be_written_fails_in_words(tmp_path):
    config = load_config("digits/dfa", ["train.epochs=1"])
    (tmp_path / "file").write_text("")
    failed = run_jobs([Job("a", config, tmp_path / "file" / "a")], 1)
    assert list(failed) == ["a"]
    assert "the folder cannot be made" in failed["a"]
    assert Path(tmp_path / "file").read_text() == ""
