"""A wire between two network namespaces that carries packets late: `scale_link.py HOST0 HOST1 SECONDS`.

The kernel gives each host a TUN device, `link0`. This process reads the IP packets that one host sends, keeps each for
a fixed time, and hands it to the other host. It is what `tc netem delay` does, for kernels without netem. The kernel
still counts the packets, limits the rate (`tc tbf` on each device), and runs TCP on them as on any link.
"""

import ctypes
import fcntl
import os
import select
import struct
import sys
import time
from collections import deque

DEVICE = "link0"
_CLONE_NEWNET = 0x40000000
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_LARGEST = 65536


def opened(host: str) -> int:
    """Return a file that sends and receives the packets of a new TUN device in a namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{host}", os.O_RDONLY)
    try:
        if libc.setns(there, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter the namespace {host}")
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), _IFF_TUN | _IFF_NO_PI))
        return device
    finally:
        libc.setns(home, _CLONE_NEWNET)
        os.close(there)
        os.close(home)


def carry(devices: list[int], delay: float) -> None:
    """Carry packets between two devices for ever.

    Args:
        devices: the two files, from `opened`.
        delay: seconds that a packet is on its way.
    """
    under_way: list[deque[tuple[float, bytes]]] = [deque(), deque()]
    while True:
        due = min((queue[0][0] for queue in under_way if queue), default=None)
        left = None if due is None else max(0.0, due - time.monotonic())
        readable, _, _ = select.select(devices, [], [], left)
        for device in readable:
            _take(device, under_way[devices.index(device)], delay)
        now = time.monotonic()
        for queue, other in zip(under_way, reversed(devices), strict=True):
            while queue and queue[0][0] <= now:
                os.write(other, queue.popleft()[1])


def _take(device: int, queue: deque[tuple[float, bytes]], delay: float) -> None:
    """Read the packets that have come, up to a number, so that none of the other direction waits long."""
    for _ in range(32):
        try:
            packet = os.read(device, _LARGEST)
        except BlockingIOError:
            return
        queue.append((time.monotonic() + delay, packet))


def main(hosts: list[str], delay: float) -> None:
    """Open both devices, say so, and carry packets until the process is ended."""
    os.nice(-10)  # a wire does not wait for other programs
    devices = [opened(host) for host in hosts]
    print("ready", flush=True)
    carry(devices, delay)


if __name__ == "__main__":
    main(sys.argv[1:3], float(sys.argv[3]))
