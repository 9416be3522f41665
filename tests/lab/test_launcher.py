"""The launcher that a user chooses: its options, and what is refused before anything is submitted."""

import sys

import pytest

import bpfree
from bpfree import UserError
from bpfree.lab.jobs.launcher import _OURS, LAUNCHERS, Launcher
from tests.lab import fake_slurm
from tests.lab.tuning import config_file
from tests.test_cli import refused

submitit = pytest.importorskip("submitit")


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Programs of Slurm are on the path."""
    for name, value in fake_slurm.install(tmp_path / "slurm").items():
        monkeypatch.setenv(name, value)


def test_options_get_the_types_of_slurm(slurm):
    texts = ["partition=gpu", "time=60", "account=007", "gpus_per_node=1", "cpus_per_task=4", "exclusive=true"]
    lists = ["setup=module load cuda", "additional_parameters={reservation: maint}"]
    wanted = {
        "partition": "gpu",
        "time": 60,
        "account": "007",
        "gpus_per_node": "1",
        "cpus_per_task": 4,
        "exclusive": True,
        "setup": ["module load cuda"],
        "additional_parameters": {"reservation": "maint"},
    }
    assert Launcher.of("slurm", texts + lists).slurm == wanted
    assert Launcher.of("slurm", wanted).slurm == wanted
    assert Launcher.of("slurm", ["time=1", "setup=[a, b]"]).slurm["setup"] == ["a", "b"]


def test_options_that_bpfree_decides_are_options_of_submitit():
    assert _OURS.keys() < submitit.SlurmExecutor._valid_parameters()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["partitoin=gpu"], r"slurm: found 'partitoin', allowed: account, .*Did you mean 'partition'\?"),
        (["time=2:00:00"], r"slurm.time: found '2:00:00', allowed: int"),
        (["time=0"], r"slurm.time: found 0, allowed: minutes, a whole number above 0"),
        (["time=60", "nodes=2"], r"slurm.nodes: not allowed here: each job is one process"),
        (["time=60", "array_parallelism=2"], r"slurm.array_parallelism: not allowed here: --jobs limits"),
        (["partition=gpu"], r"slurm.time: missing; the minutes that a job may take, such as --slurm time=60"),
        (["partition"], r"slurm: found 'partition', allowed: KEY=VALUE, such as partition=gpu"),
        (["time=60", "setup={a: b}"], r"slurm.setup: found .*, allowed: a list of text|list"),
    ],
)
def test_options_that_are_refused(options, error, slurm):
    with pytest.raises(UserError, match=error):
        Launcher.of("slurm", options)


def test_what_is_missing_is_told_with_its_cure(tmp_path, monkeypatch):
    path = config_file(tmp_path)
    tune = ("tune", path, "--out", tmp_path / "out")
    compare = ("compare", "digits/mlp", "--rules", "dfa", "--out", tmp_path / "out")
    monkeypatch.setenv("PATH", str(tmp_path))
    for command in (tune, compare):
        line = refused(*command, "--launcher", "slurm", "--slurm", "time=60")
        assert "this machine has no sbatch, srun, sacct, scancel. Run the command on the login node" in line
        assert "allowed: local, slurm, submitit" in refused(*command, "--launcher", "kubernetes")
        assert "slurm: found options, but the launcher is local" in refused(*command, "--slurm", "time=60")
    monkeypatch.setitem(sys.modules, "submitit", None)
    for command in (tune, compare):
        assert "pip install 'bpfree[slurm]'" in refused(*command, "--launcher", "submitit")
    assert not (tmp_path / "out").exists()


def test_objects_from_python_train_in_this_process(tmp_path):
    with pytest.raises(UserError, match="launcher: found submitit, allowed: local, since nets"):
        bpfree.compare("mlp", "digits", rules=[bpfree.rules.DFA], out=tmp_path, launcher="submitit")
    assert set(LAUNCHERS) == {"local", "slurm", "submitit"}
