"""Trainings in several processes, for `scale.py`: on this machine, or on two hosts with a slow link between them."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from scale_hosts import ADDRESSES, HERE, HOSTS, on
from scale_link import DEVICE

WORKER = str(HERE / "scale_worker.py")
LIMIT = 300  # seconds for a run


class Run(NamedTuple):
    """A training in several processes; the arguments of `scale_worker.py`."""

    mode: str
    rule: str | dict[str, Any] = "backprop"
    subject: str = "wide"
    steps: int = 20

    @property
    def arguments(self) -> list[str]:
        """The command line of a worker."""
        rule = self.rule if isinstance(self.rule, str) else json.dumps(self.rule)
        return ["--mode", self.mode, "--rule", rule, "--subject", self.subject, "--steps", str(self.steps)]


def here(run: Run, processes: int) -> list[dict[str, Any]]:
    """Return what each process of a run on this machine wrote, and the share of the processor that others used."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = _environment() | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(processes)}
    commands = [[sys.executable, WORKER, *run.arguments] for _ in range(processes)]
    return _run(commands, [environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)])


def on_two_hosts(run: Run) -> list[dict[str, Any]]:
    """Return what the processes of a run on two hosts wrote. torchrun starts one process on each host."""
    environment = _environment() | {"GLOO_SOCKET_IFNAME": DEVICE, "TP_SOCKET_IFNAME": DEVICE}
    commands = []
    for host, address in zip(HOSTS, ADDRESSES, strict=True):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
        meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{ADDRESSES[0]}:29400", "--rdzv-id", "scale"]
        meeting += ["--rdzv-conf", f"is_host={str(host == HOSTS[0]).lower()}"]  # torchrun cannot see it by the name
        commands.append(on(host, *torchrun, *meeting, "--local-addr", address, WORKER, *run.arguments))
    return _run(commands, [environment] * 2)


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}


def _run(commands: list[list[str]], environments: list[dict[str, str]]) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        busy, own, start = _busy(), os.times(), time.monotonic()
        started = [
            subprocess.Popen([*command, "--out", folder], env=environment, stderr=subprocess.PIPE, text=True)
            for command, environment in zip(commands, environments, strict=True)
        ]
        errors = [process.communicate(timeout=LIMIT)[1] for process in started]
        if any(process.returncode for process in started):
            raise SystemExit("\n".join(errors))
        after = os.times()
        ours = after.children_user + after.children_system - own.children_user - own.children_system
        others = (_busy() - busy - ours) / (time.monotonic() - start)
        found = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(len(started))]
    return [each | {"others": others} for each in found]


def _busy() -> float:
    """Return the seconds that all processors of the machine have worked since it started."""
    fields = [int(each) for each in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")
