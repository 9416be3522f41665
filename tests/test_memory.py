"""Flat memory is the point of being local. Bytes are counted exactly, so this is no timed test."""

import os
import subprocess
import sys

import pytest
import torch

from bpfree.memory import peak_step_memory
from bpfree.nets import NETS
from bpfree.rules import RULES
from bpfree.tasks import Classify
from bpfree.training.trainer import Trainer
from bpfree.types import Batch

BATCH, WIDTH = 1024, 32


def activation_memory(rule: str, depth: int, device, **options) -> float:
    """Peak of one call of `gradients` with the gradients there already, in layers' activations."""
    torch.manual_seed(0)
    net = NETS["mlp"](WIDTH, 10, hidden=[WIDTH] * depth).to(device)
    trainer = Trainer(net, RULES[rule](**options), Classify(10))
    batch = Batch(torch.randn(BATCH, WIDTH, device=device), torch.zeros(BATCH, dtype=torch.int64, device=device))
    return trainer.step_memory(batch, with_gradients=False) / (4 * BATCH * WIDTH)


@pytest.mark.parametrize(("rule", "options"), [("mono_forward", {}), ("dfa", {"memory": "flat"})])
def test_peak_activation_memory_is_flat_in_depth(rule, options, device):
    shallow, deep = (activation_memory(rule, depth, device, **options) for depth in (4, 32))
    assert deep < shallow + 0.5


@pytest.mark.parametrize("rule", ["backprop", "dfa"])
def test_it_grows_where_activations_are_kept(rule, device):
    shallow, deep = (activation_memory(rule, depth, device) for depth in (4, 32))
    assert deep > shallow + 20


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        ("recombine", {"evaluator": "loop"}),
        ("es", {"evaluator": "vmap", "max_memory": 4}),
        ("eggroll", {"evaluator": "lowrank", "max_memory": 4}),
    ],
)
def test_a_population_of_any_size_takes_the_memory_of_a_few(rule, options, device):
    few, many = (activation_memory(rule, 4, device, population=p, **options) for p in (64, 1024))
    assert many < few + 0.5


OF_RECOMBINE = 3.0 if torch.__version__.startswith("2.6.") else 2.5  # 2.80 with torch 2.6, as measured


@pytest.mark.parametrize(("rule", "times"), [("es", 2.5), ("recombine", OF_RECOMBINE), ("spsa", 2.5), ("eggroll", 2.0)])
def test_a_loop_takes_inference_and_a_few_times_the_parameters(rule, times, device):
    """A copy and one member's noise, or the gradient and one member's noise."""
    net = NETS["mlp"]((784,), 10, hidden=[512, 512]).to(device)
    options = {} if rule == "spsa" else {"evaluator": "loop", "population": 8}
    trainer = Trainer(net, RULES[rule](**options), Classify(10))
    batch = Batch(torch.randn(16, 784, device=device), torch.arange(16, device=device) % 10)
    trainer.step(batch)
    parameters = sum(p.numel() for p in net.parameters()) * 4
    assert trainer.step_memory(batch) < times * parameters


def test_the_peak_of_a_step_is_what_was_allocated_at_once():
    def step():
        a = torch.empty(1000, dtype=torch.uint8)
        del a
        b = torch.empty(700, dtype=torch.uint8)
        c = torch.empty(600, dtype=torch.uint8)
        return b, c

    assert peak_step_memory(step) == pytest.approx(1300, abs=200)


def test_the_memory_of_the_process_counts_what_was_touched(device):
    """In a process of its own: what other tests have freed would count as touched already."""
    program = f"""
import torch
from bpfree.memory import peak_process_memory
torch.ones(2, device="{device}")
freed = torch.ones(50_000_000)  # on the heap: otherwise glibc gives it back at once
del freed
with peak_process_memory("{device}") as memory:
    before = memory()
    torch.ones(50_000_000, device="{device}")
    after = memory()
    print(before.growth, after.growth, after.peak - before.peak)
"""
    limit = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**31 - 1), "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=limit)
    before, growth, of_peak = map(int, done.stdout.split())
    assert before < 10e6
    assert 150e6 < growth < 300e6
    assert of_peak > 150e6
