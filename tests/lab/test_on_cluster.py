"""Comparisons and searches as jobs of submitit: real processes on this machine, and a Slurm that a test plays."""

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import warnings
from contextlib import nullcontext, suppress

import pytest
import torch
from optuna.trial import TrialState

import bpfree
from bpfree import UserError
from bpfree.lab.jobs.cluster import Cluster, cluster
from bpfree.lab.jobs.jobs import Job
from bpfree.lab.jobs.launcher import Launcher
from bpfree.lab.jobs.on_cluster import run_on_cluster
from bpfree.lab.jobs.submitted import JobFailedError, Submitted
from bpfree.lab.tune.plan import make_plan
from bpfree.lab.tune.study import search
from bpfree.runs.config_file import load_config
from bpfree.runs.train import train
from tests.lab import fake_slurm
from tests.lab.tuning import config_file, in_database, states, study_file, tiny, wait_for

submitit = pytest.importorskip("submitit")
pytestmark = pytest.mark.usefixtures("undrawn")
PATIENCE = 300  # seconds on a busy machine
SMALL = ["data.fraction=0.3", "net.hidden=[8]"]


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    monkeypatch.setattr("bpfree.lab.jobs.cluster._ASK_EVERY", 1.0)
    for name, value in fake_slurm.install(tmp_path / "slurm").items():
        monkeypatch.setenv(name, value)
    return Launcher.of("slurm", ["time=60", "cpus_per_task=1"])


@pytest.fixture
def launcher(request):
    return request.getfixturevalue("slurm") if request.param == "slurm" else Launcher.of("submitit")


def with_slow(slow):
    """A test with both launchers, of which one is slow."""
    params = [pytest.param(name, marks=[pytest.mark.slow] * (name == slow)) for name in ("submitit", "slurm")]
    return pytest.mark.parametrize("launcher", params, indirect=True)


def job(folder, rule, epochs):
    return Job(rule, load_config(f"digits/{rule}", [*SMALL, f"train.epochs={epochs}"]), folder / rule)


def pid_of(jobs: Cluster, number: int) -> int:
    """The process of a job that trains."""
    place = jobs.jobs[number]
    if jobs.is_slurm:
        return int((fake_slurm.state() / f"{place.job_id}.pid").read_text())
    return int(subprocess.check_output(["ps", "-o", "pid=", "--ppid", place.job_id], text=True))


def at_first_epoch(folder, do):
    """A thread that does something when a run has its first epoch."""
    metrics = folder / "metrics.jsonl"

    def wait():
        wait_for(lambda: metrics.exists() and metrics.read_text(), PATIENCE)
        do()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def assert_whole(folder):
    """The weights of a run are those of a training that nobody disturbed."""
    config = load_config(str(folder / "config.yaml"))
    for ours, whole in zip(bpfree.load(folder).net.parameters(), train(config).net.parameters(), strict=True):
        assert torch.equal(ours, whole)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["submitit", "slurm"], indirect=True)
def test_a_job_that_is_killed_is_told_with_its_log_and_the_others_go_on(tmp_path, launcher):
    all_jobs = [job(tmp_path, "dfa", 60), job(tmp_path, "drtp", 1)]
    most = []

    def watch(running, done, total):
        most.append(len(running))

    with cluster(launcher, tmp_path, at_once=1) as jobs:
        assert stat.S_IMODE(jobs.folder.stat().st_mode) == 0o700
        killer = at_first_epoch(tmp_path / "dfa", lambda: os.kill(pid_of(jobs, 0), signal.SIGKILL))
        failed = run_on_cluster(all_jobs, jobs, watch)
        killer.join()
    if jobs.is_slurm:  # which limits the jobs itself; the end of one is seen after the next has begun
        assert "#SBATCH --array=0-1%1\n" in next(fake_slurm.state().glob("*.sh")).read_text()
    else:
        assert max(most) == 1
    log = jobs.jobs[0].paths.stderr
    assert log.exists()
    assert failed.keys() == {"dfa"}
    assert f"(see {log})" in failed["dfa"]
    assert (" ended with OUT_OF_MEMORY" if jobs.is_slurm else " ended, it was killed ") in failed["dfa"]
    assert all_jobs[1].is_over()
    with cluster(launcher, tmp_path) as jobs:
        assert run_on_cluster(all_jobs, jobs) == {}
    assert len(jobs.jobs) == 1
    assert not jobs.folder.exists()
    assert_whole(tmp_path / "dfa")


@pytest.fixture
def terminal(tmp_path):
    """Starts a command as a terminal does: Ctrl-C reaches all its processes."""
    processes = []

    def run(*arguments):
        command = [sys.executable, "-m", "bpfree", *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, start_new_session=True, cwd=tmp_path, **pipes))
        return processes[-1]

    yield run
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def options_of(launcher):
    slurm = [word for key, value in launcher.slurm.items() for word in ("--slurm", f"{key}={value}")]
    return ["--launcher", launcher.name, *slurm]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["submitit", "slurm"], indirect=True)
def test_ctrl_c_cancels_the_jobs_and_the_same_command_goes_on(tmp_path, launcher, terminal):
    out = tmp_path / "out"
    small = ["train.epochs=30", "net.width=8", "data.fraction=0.3", "--seeds", 2, "--jobs", 1]
    command = ["compare", "digits/backprop_denoiser", *small, "--out", out, *options_of(launcher)]
    stopped = terminal(*command)
    first, second = out / "runs" / "backprop-0", out / "runs" / "backprop-1"
    at_first_epoch(first, lambda: os.killpg(stopped.pid, signal.SIGINT)).join()
    _, errors = stopped.communicate()
    assert stopped.returncode == 130, errors
    assert errors.endswith("interrupted. Finished and begun runs are kept. The same command goes on\n")
    assert '"why": "interrupted"' in (first / "metrics.jsonl").read_text()
    assert not second.exists()
    assert not list(out.glob("submitit-*"))
    resumed = terminal(*command)
    _, errors = resumed.communicate()
    assert resumed.returncode == 0, errors
    assert "begins: backprop seed 0" in errors
    assert json.loads((second / "result.json").read_text())["threads"] == 1
    assert_whole(first)
    elsewhere = json.loads((out / "compare.json").read_text())["machine"].get("runs", "")
    assert bool(elsewhere) == (launcher.name == "slurm")


@pytest.mark.slow
@pytest.mark.parametrize("minutes", [60, 5], ids=["preempted", "time is over"])
def test_a_job_that_loses_its_machine_goes_on_by_itself(tmp_path, slurm, minutes):
    """To submitit, time is over when a job has the last 10 minutes of its time left."""
    preempted = job(tmp_path, "dfa", 60)
    with cluster(Launcher("slurm", {"time": minutes}), tmp_path) as jobs:
        thread = at_first_epoch(preempted.folder, lambda: fake_slurm.send(jobs.jobs[0].job_id, signal.SIGUSR2))
        assert run_on_cluster([preempted], jobs) == {}
        thread.join()
    assert preempted.is_over()
    assert_whole(preempted.folder)


def test_errors_of_the_user_stand_alone(tmp_path, slurm):
    config = load_config("digits/dfa", [*SMALL, "data.dir=/none"])
    config.data.name = "mnist"
    (tmp_path / "file").touch()
    some = [Job("mnist", config, tmp_path / "mnist"), Job("file", config, tmp_path / "file" / "run")]
    with cluster(slurm, tmp_path) as jobs:
        failed = run_on_cluster(some, jobs)
    assert "the folder cannot be made" in failed["file"]
    assert "Traceback" not in failed["mnist"]
    assert "see" not in failed["mnist"]
    closed = Launcher.of("slurm", ["time=60", "partition=closed"])
    with (
        pytest.raises(UserError, match=r"Slurm refuses the jobs \(.*invalid partition"),
        cluster(closed, tmp_path) as jobs,
    ):
        run_on_cluster([job(tmp_path, "dfa", 1)], jobs)


@with_slow("slurm")
def test_a_search_by_two_workers_survives_the_death_of_one(tmp_path, launcher):
    plan = make_plan(tiny(train={"epochs": 15}), ["tune.trials=12", "tune.grace=2"], out=tmp_path / "out")
    seen = {}

    def kill_one(finished, best):
        """Look at the files and the arguments of the workers, and kill one of them."""
        if not seen and finished:
            (plan_file,) = plan.out.glob(".plan-*")
            seen["mode"] = stat.S_IMODE(plan_file.stat().st_mode)
            worker = in_database(plan.out).get_trials(deepcopy=False)[0].user_attrs["worker"]
            os.kill(int(worker.rpartition(":")[2]), signal.SIGKILL)

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        search(plan, 2, kill_one, launcher)
    assert seen["mode"] == 0o600
    said = [str(warning.message) for warning in warned]
    assert any(text.startswith("a worker failed, and the others take its trial: its job ") for text in said), said
    assert any("a file of SQLite on a network disk" in text for text in said) == (launcher.name == "slurm")
    assert states(plan.out)["complete"] == 12
    assert len({trial["worker"] for trial in study_file(plan.out)["trials"]}) == 2
    assert not list(plan.out.glob(".plan-*"))


@pytest.mark.slow
def test_ctrl_c_puts_the_trials_of_workers_back(tmp_path, terminal):
    path, out = config_file(tmp_path, train={"epochs": 48}), tmp_path / "out"
    command = ["tune", path, "tune.trials=1000", "--workers", 2, "--launcher", "submitit", "--out", out]
    process = terminal(*command)
    wait_for(lambda: list(out.glob("trials/*/result.json")), PATIENCE)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1] == "interrupted. Finished trials are kept. The same command goes on"
    trials = in_database(out).trials
    assert not [trial for trial in trials if trial.state == TrialState.RUNNING]
    assert {t.user_attrs["reason"] for t in trials if t.state == TrialState.FAIL} <= {"KeyboardInterrupt"}
    assert not list(out.glob("submitit-*"))
    assert not list(out.glob(".plan-*"))


@pytest.mark.slow
def test_a_worker_that_waits_in_the_queue_is_cancelled_when_nothing_is_left_to_do(tmp_path, slurm, monkeypatch):
    monkeypatch.setenv("FAKE_SLURM_SLOTS", "1")
    plan = make_plan(tiny(), ["tune.trials=3"], out=tmp_path / "out")
    with pytest.warns(UserWarning, match="a file of SQLite on a network disk"):
        search(plan, 2, launcher=slurm)
    assert states(plan.out) == {"complete": 3}
    ends = ["CANCELLED by 0", "COMPLETED"]
    wait_for(lambda: sorted(path.read_text() for path in fake_slurm.state().glob("*.state")) == ends, PATIENCE)


def test_a_job_has_one_thread_its_gpus_and_no_library_from_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise SystemExit('a stranger')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    shell = "echo $OMP_NUM_THREADS $CUDA_VISIBLE_DEVICES; exit 3"
    with cluster(Launcher.of("submitit"), tmp_path) as jobs:
        (place,) = jobs.submit(subprocess.call, [[["sh", "-c", shell]]])
        wait_for(lambda: jobs.is_over(place), PATIENCE)
        assert "1 3" in place.paths.stdout.read_text().splitlines()
        assert " ended: bpfree.lab.jobs.submitted.JobFailedError: the job ended with status 3 (see " in jobs.why(place)


def test_a_preempted_job_is_over_when_nobody_puts_it_back(tmp_path, slurm, monkeypatch):
    jobs = Cluster(slurm, tmp_path, None)
    (fake_slurm.state() / "77.state").write_text("PREEMPTED")
    place = submitit.SlurmJob(tmp_path, "77")
    assert not jobs.is_over(place)
    monkeypatch.setattr("bpfree.lab.jobs.cluster._PREEMPTED", 0.0)
    assert jobs.is_over(place)


@pytest.mark.parametrize(
    ("signals", "status", "requeued", "error"),
    [
        ([], 0, 0, False),
        ([], 2, 0, True),
        ([signal.SIGTERM], 0, 0, True),
        ([signal.SIGUSR2], 0, 1, True),
        ([signal.SIGTERM, signal.SIGUSR2], 0, 1, True),
    ],
)
def test_signals_of_slurm_act_as_ctrl_c(signals, status, requeued, error, monkeypatch):
    monkeypatch.setattr("bpfree.lab.jobs.submitted._GRACE", 0.0)

    def work():
        try:
            for number in signals:
                signal.raise_signal(number)
        except KeyboardInterrupt:
            for number in signals[1:]:
                signal.raise_signal(number)
            return 130
        return status

    calls = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in numbers]
    signal.signal(signal.SIGUSR2, lambda *_: calls.append(1))
    try:
        with pytest.raises(JobFailedError) if error else nullcontext():
            Submitted(work)()
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    assert len(calls) == requeued
