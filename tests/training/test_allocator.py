"""Freed memory is used again."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from bpfree.training.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
for step in range(40):
    if step == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 * 2**20).add(1.0)  # 64 MiB, and as much again
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc")
def test_freed_memory_is_mapped_once():
    faults = {}
    for how in ("keep", "give back"):
        done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
        faults[how] = int(done.stdout)
    assert faults["give back"] > 5 * faults["keep"]  # a small block in the way may cost a few
