"""Freed memory is used again, so that what a process takes is what its tensors need."""

import os
import platform
import subprocess
import sys

import pytest

from bpfree.training import allocator

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


RESTARTS = """
import os, runpy, sys
runpy.run_path(sys.argv[1])["restart_without_caches"]()  # without the seconds in which torch is imported
print(os.environ["GLIBC_TUNABLES"], *sys.argv[2:], *sys.warnoptions)
"""


@pytest.mark.skipif(not allocator.without_caches(), reason="no glibc, or one that needs no settings")
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"),
        (
            "glibc.pthread.mutex_spin_count=50",
            "glibc.pthread.mutex_spin_count=50:glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0",
        ),
        ("glibc.malloc.tcache_count=7", "glibc.malloc.tcache_count=7"),  # the user decides
    ],
)
def test_a_program_starts_again_once_with_its_arguments(given, expected, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", given)
    command = [sys.executable, "-W", "error::BytesWarning", "-c", RESTARTS, allocator.__file__, "a b", "*"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{expected} a b * error::BytesWarning\n"


def test_without_glibc_nothing_is_set(monkeypatch):
    monkeypatch.delattr(os, "confstr", raising=False)
    assert allocator.without_caches() == {}


GROWTH = """
import sys, torch
from bpfree.memory import peak_process_memory
from bpfree.nets import mlp
from bpfree.training.allocator import keep_freed_memory
from bpfree.training.trainer import Trainer
from bpfree.tasks import Classify
from bpfree.types import Batch
torch.set_num_threads(1)
keep_freed_memory()
for depth in (2, 4, 24):  # the first is a warm-up
    rule, update = sys.argv[1:]
    net = mlp(128, 10, hidden=[128] * depth, activation="tanh")
    trainer = Trainer(net, rule, Classify(10), "sgd", compute={"update": update})
    batch = Batch(torch.randn(4096, 128), torch.zeros(4096, dtype=torch.int64))
    trainer.bind(batch)
    with peak_process_memory() as memory:
        for step in range(3):
            trainer.step(batch)
        print(memory().growth / (4096 * 128 * 4))
"""


def growth(rule: str, update: str) -> tuple[float, float]:
    """The growth of a process by training with 4 and 24 hidden layers, in activations."""
    environment = os.environ | allocator.without_caches()
    command = [sys.executable, "-c", GROWTH, rule, update]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    _, shallow, deep = map(float, done.stdout.split())
    return shallow, deep


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc")
@pytest.mark.parametrize("rule", ["drtp", "mono_forward"])
def test_the_memory_that_the_process_takes_does_not_grow_with_depth(rule):
    shallow, deep = growth(rule, "fused")
    assert deep < shallow + 4  # a few: small blocks may lie in the way; 20 layers would show


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc")
def test_it_grows_where_activations_are_kept():
    shallow, deep = growth("backprop", "together")
    assert deep > shallow + 10
