"""No rule mixes tensors of the device with tensors of the CPU, or waits for the device: told without a GPU.

The net, the rule and the batch lie on torch's device "meta", which computes shapes alone and takes the place of a GPU.
"""

import contextlib
import traceback
from collections import Counter
from inspect import signature
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from bpfree import BlackBoxRule, Noise, Trainer
from bpfree.nets import NETS
from bpfree.population import InPlace, Loop, LowRankEvaluator, Vmap
from bpfree.population.rule import _Chosen
from bpfree.rules import RULES
from bpfree.types import Batch
from tests.helpers import IN_SHAPE, TASK, net_for

aten = torch.ops.aten
COPIES = (aten._to_copy.default, aten.copy_.default)
EVALUATORS = {
    "loop": Loop,
    "in_place": InPlace,
    "vmap": lambda: Vmap(8),
    "lowrank": lambda: LowRankEvaluator(8),
}


class Watch(TorchDispatchMode):
    """Counts, by the line of ours that does it: operations on tensors of two devices, reads, copies between devices."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if func is aten._local_scalar_dense.default and args[0].is_meta:
            self.waits[line()] += 1
            return torch.ones((), dtype=args[0].dtype).item()
        if func in COPIES:
            return self.copy(func, args, kwargs)
        if len({t.device for t in tensors if t.dim() > 0}) > 1:  # numbers of the CPU may meet any tensor
            self.mixed[line()] += 1
            args, kwargs = tree_map_only(Tensor, lambda t: t.to("meta"), (args, kwargs))
        if func is aten.index.Tensor and any(t is not None and t.dtype == torch.bool for t in args[1]):
            self.waits[line()] += 1  # how many there are is known on the device alone
            return args[0].clone()
        return func(*args, **kwargs)

    def copy(self, func, args, kwargs):
        to, source = (args[0], args[1]) if func is aten.copy_.default else (None, args[0])
        target = to.device if to is not None else torch.device(kwargs.get("device") or source.device)
        if source.device != target and source.dim() > 0:
            self.waits[line()] += 1
        if source.is_meta and target.type != "meta":
            return to if to is not None else torch.ones(source.shape, dtype=kwargs.get("dtype") or source.dtype)
        return func(*args, **kwargs)


def line() -> str:
    """The last line of the package that is being run."""
    ours = [f for f in traceback.extract_stack() if "/bpfree/" in f.filename and "/tests/" not in f.filename]
    return f"{ours[-1].filename.rpartition('/bpfree/')[2]}:{ours[-1].lineno}" if ours else "?"


@pytest.fixture
def no_generators(monkeypatch):
    """The device "meta" has neither generators nor autocast."""
    generator, autocast, is_enabled = Noise.generator, torch.autocast, torch.is_autocast_enabled
    module_of = torch.get_device_module
    without = SimpleNamespace(manual_seed=lambda key: None, get_rng_state=torch.get_rng_state)

    def of_device(device=None):
        return without if torch.device(device).type == "meta" else module_of(device)

    def as_cpu(kind):
        return "cpu" if kind == "meta" else kind

    def drawn_by(self, device="cpu"):
        return None if torch.device(device).type == "meta" else generator(self)

    monkeypatch.setattr(torch, "get_device_module", of_device)
    monkeypatch.setattr(Noise, "generator", drawn_by)
    monkeypatch.setattr(Noise, "global_rng", lambda self, device="cpu": contextlib.nullcontext())
    repeated = contextlib.nullcontext(contextlib.nullcontext)
    monkeypatch.setattr(Noise, "repeated_rng", lambda self, device="cpu": repeated)
    monkeypatch.setattr(torch, "autocast", lambda kind, *args, **options: autocast(as_cpu(kind), *args, **options))
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind="cpu": is_enabled(as_cpu(kind)))


def watched(name, net, evaluator=None):
    """What a step and a prediction do: Watch of each."""
    rule = RULES[name](population=4) if "population" in signature(RULES[name]).parameters else RULES[name]()
    batch = Batch(torch.randn(16, *IN_SHAPE), torch.arange(16) % 10)
    Trainer(net, rule, TASK).bind(batch)
    net.to("meta")
    rule.to("meta")
    if evaluator:
        rule._choice = lambda *_: _Chosen(net, [], evaluator.behaviour, evaluator)
    batch = Batch(batch.x.to("meta"), batch.y.to("meta"))
    with Watch() as step:
        scalars = rule.gradients(net, TASK, batch, Noise(0, 0))
    assert all(value.is_meta for value in scalars.values())
    net.eval()
    with torch.no_grad(), Watch() as prediction:
        assert rule.predict(net, batch.x).is_meta
    return step, prediction


CASES = [
    *((name, "loop" if issubclass(kind, BlackBoxRule) else None) for name, kind in RULES.items()),
    *(("es", evaluator) for evaluator in ("in_place", "vmap")),
    *(("eggroll", evaluator) for evaluator in ("lowrank", "vmap")),
]


def test_what_is_watched_for_is_seen():
    x = torch.ones(3, device="meta")
    with Watch() as watch:
        assert (x + torch.ones(3)).is_meta
        x * torch.ones(())
        assert float(x.sum()) == 1
        x[x > 0]
        x.cpu()
        torch.zeros(3).to("meta")
    assert sum(watch.mixed.values()) == 1
    assert sum(watch.waits.values()) == 4


@pytest.mark.parametrize(("name", "evaluator"), CASES)
def test_a_step_stays_on_the_device(name, evaluator, no_generators):
    nets = [net_for(name, dtype=torch.float32)]
    if RULES[name].needs_net is None and evaluator != "loop":
        nets.append(NETS["conv"](IN_SHAPE, 10, channels=[10, 20], activation="tanh"))
    for net in nets:
        step, prediction = watched(name, net, EVALUATORS[evaluator]() if evaluator else None)
        assert not step.mixed
        assert not prediction.mixed
        assert not prediction.waits
        assert not step.waits
