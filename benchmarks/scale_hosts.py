"""Two network namespaces as two hosts, joined by a link with a rate and a delay. It needs Linux and root."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scale_link import DEVICE

HOSTS = ("bpfree0", "bpfree1")
ADDRESSES = ("10.77.0.1", "10.77.0.2")
HERE = Path(__file__).parent


@contextmanager
def two_hosts(rate: str, delay: float) -> Iterator[None]:
    """Make two hosts for the block, and remove them after it.

    Args:
        rate: of each direction, in words of tc, such as "100mbit".
        delay: seconds that a packet takes, in each direction.
    """
    for host in HOSTS:
        _ip("netns", "add", host)
    wire = None
    try:
        command = [sys.executable, str(HERE / "scale_link.py"), *HOSTS, str(delay)]
        wire = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert wire.stdout is not None
        if wire.stdout.readline() != "ready\n":
            raise SystemExit("the wire between the hosts could not be made")
        for host, address in zip(HOSTS, ADDRESSES, strict=True):
            _set_up(host, address, rate)
        yield
    finally:
        if wire is not None:
            wire.kill()
            wire.wait()
        for host in HOSTS:
            _ip("netns", "del", host)


def _set_up(host: str, address: str, rate: str) -> None:
    def run(*command: str) -> None:
        subprocess.run(on(host, *command), check=True, capture_output=True)

    run("sysctl", "-w", "net.ipv6.conf.all.disable_ipv6=1")  # no packets but those of the training
    run("ip", "link", "set", "lo", "up")
    run("ip", "address", "add", f"{address}/24", "dev", DEVICE)
    run("ip", "link", "set", DEVICE, "up", "mtu", "1500", "txqueuelen", "1000")
    # The queue holds 200 ms, so that TCP finds the rate without losing many packets.
    run("tc", "qdisc", "add", "dev", DEVICE, "root", "tbf", "rate", rate, "burst", "16kb", "latency", "200ms")


def on(host: str, *command: str) -> list[str]:
    """Return a command that runs on a host."""
    return ["ip", "netns", "exec", host, *command]


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
