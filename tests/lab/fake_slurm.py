"""A Slurm of one machine, as far as submitit sees it: sbatch, srun, sacct, scancel and scontrol on the path.

`python fake_slurm.py PROGRAM ...` acts as the program. The state of all jobs lies in the folder $FAKE_SLURM:
ID.state, ID.pid of the step that runs, and ID.cancel or ID.requeue if somebody asked for it. $FAKE_SLURM_SLOTS is the
number of jobs of an array that the machine can run at once.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

PROGRAMS = ("sbatch", "srun", "sacct", "scancel", "scontrol")
ENDS = {0: "COMPLETED", 128 + signal.SIGKILL: "OUT_OF_MEMORY"}  # bash reports a killed child like this


def install(folder: Path) -> dict[str, str]:
    """Write the programs, and return the environment in which they are found."""
    (folder / "bin").mkdir(parents=True)
    (folder / "state").mkdir()
    for program in PROGRAMS:
        path = folder / "bin" / program
        path.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, __file__, program])} "$@"\n')
        path.chmod(0o755)
    return {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}", "FAKE_SLURM": str(folder / "state")}


def state() -> Path:
    return Path(os.environ["FAKE_SLURM"])


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def flag(script: str, name: str) -> str:
    found = re.search(rf"^#SBATCH --{name}=(.*)$", script, re.MULTILINE)
    return shlex.split(found[1])[0] if found else ""


def sbatch(path: str) -> None:
    script = Path(path).read_text()
    if flag(script, "partition") == "closed":
        sys.exit("sbatch: error: invalid partition specified: closed")
    number = time.time_ns() // 1000 % 10**9  # submitit keeps states by number, also those of another test
    (state() / f"{number}.sh").write_text(script)
    ids = [str(number)]
    if array := flag(script, "array"):
        last = int(re.fullmatch(r"0-(\d+)%\d+", array)[1])
        ids = [f"{number}_{task}" for task in range(last + 1)]
    for one in ids:
        (state() / f"{one}.state").write_text("PENDING")
    quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    subprocess.Popen([sys.executable, __file__, "schedule", *ids], start_new_session=True, **quiet)
    say(f"Submitted batch job {number}")


def schedule(*ids: str) -> None:
    """Run the tasks of a job, at most as many at once as its array allows."""
    script = state() / f"{ids[0].partition('_')[0]}.sh"
    limit = int((flag(script.read_text(), "array") or "%1").partition("%")[2])
    limit = min(limit, int(os.environ.get("FAKE_SLURM_SLOTS", limit)))
    waiting, running = list(ids), {}
    while waiting or running:
        for one in [one for one in waiting if (state() / f"{one}.cancel").exists()]:
            waiting.remove(one)
            (state() / f"{one}.state").write_text("CANCELLED by 0")
        while waiting and len(running) < limit:
            one = waiting.pop(0)
            running[one] = start(one, script)
        for one, process in list(running.items()):
            if process.poll() is not None:
                del running[one]
                if (state() / f"{one}.requeue").exists():
                    (state() / f"{one}.requeue").unlink()
                    (state() / f"{one}.state").write_text("REQUEUED")
                    waiting.append(one)
                else:
                    ended = "CANCELLED by 0" if (state() / f"{one}.cancel").exists() else "FAILED"
                    (state() / f"{one}.state").write_text(ENDS.get(process.returncode, ended))
        time.sleep(0.05)


def start(one: str, script: Path) -> "subprocess.Popen[bytes]":
    array, _, task = one.partition("_")
    numbers = {"SLURM_JOB_ID": array, "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1", "SLURM_PROCID": "0"}
    if task:
        numbers |= {"SLURM_ARRAY_JOB_ID": array, "SLURM_ARRAY_TASK_ID": task}
    (state() / f"{one}.state").write_text("RUNNING")
    with open(named(flag(script.read_text(), "error")), "ab") as log:
        return subprocess.Popen(["bash", script], stdout=log, stderr=log, env=os.environ | numbers | {"FAKE_ID": one})


def named(path: str) -> str:
    """The path of a log, with the numbers of the job that runs."""
    array, _, task = os.environ.get("FAKE_ID", "").partition("_")
    return path.replace("%A", array).replace("%j", array).replace("%a", task).replace("%t", "0")


def srun(*words: str) -> None:
    unbuffered, *rest = words
    assert unbuffered == "--unbuffered"
    while rest[0].startswith("--"):
        option, path, *rest = rest
        number = {"--output": 1, "--error": 2}[option]
        os.dup2(os.open(named(path), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
    (state() / f"{os.environ['FAKE_ID']}.pid").write_text(str(os.getpid()))
    os.execvp(rest[0], rest)


def sacct(*words: str) -> None:
    say("JobID|State|NodeList")
    asked = {word for before, word in pairwise(words) if before == "-j"}
    for path in sorted(state().glob("*.state")):
        array, _, task = path.stem.partition("_")
        if array in asked:
            now = path.read_text()
            shown = f"{array}_[{task}]" if task and now == "PENDING" else path.stem
            say(f"{shown}|{now}|node1")
            say(f"{path.stem}.batch|{now}|node1")


def scancel(*asked: str) -> None:
    for path in state().glob("*.state"):
        if path.stem in asked and path.read_text() in ("PENDING", "RUNNING"):
            (state() / f"{path.stem}.cancel").touch()
            send(path.stem, signal.SIGTERM)


def send(one: str, number: int) -> None:
    pid = state() / f"{one}.pid"
    if pid.exists() and (state() / f"{one}.state").read_text() == "RUNNING":
        os.kill(int(pid.read_text()), number)


def scontrol(verb: str, one: str) -> None:
    assert verb == "requeue"
    (state() / f"{one}.requeue").touch()


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
