"""A test of a device: it compares the gradients of each rule with those in float64 on the CPU.

Random numbers are drawn on the CPU in float64 for both, so that both compute with the same numbers.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, get_args
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bpfree import BlackBoxRule, Noise, Rule, Trainer, UserError
from bpfree.diffusion import DiffusionRule
from bpfree.nets import NETS
from bpfree.noise import counting_everywhere, philox
from bpfree.population import EvaluatorName
from bpfree.rules import RULES
from bpfree.tasks import Classify
from bpfree.training.precision import arithmetic
from bpfree.types import Batch

IN_SHAPE = (1, 8, 8)
DRAWN_OTHERWISE = ("brsf",)  # its magnitudes are 7 random bits on a CPU, and a uniform number elsewhere
LIMITS = {"float64": 1e-9, "float32": 5e-3}  # of the relative error
_FILLED = (Tensor.normal_, Tensor.bernoulli_, Tensor.uniform_)
_DRAWN = (torch.randn, torch.rand, torch.randint)


class Error(NamedTuple):
    """The error of a rule on a net: the difference of its gradients on the device from float64 on the CPU.

    Attributes:
        rule, net: their names.
        float64, float32: relative errors |found - expected| / |expected| by the dtype on the device.
        bfloat16: the cosine of a step under autocast with the same step in float32.
    """

    rule: str
    net: str
    float64: float
    float32: float
    bfloat16: float

    @property
    def right(self) -> bool:
        """True if the errors are within the limits; NaN is not."""
        return self.float64 < LIMITS["float64"] and self.float32 < LIMITS["float32"]


class _DrawnOnCPU(TorchFunctionMode):
    """A mode in which a CPU generator draws on the CPU in float64, for every target device and dtype."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("generator") is None:
            return func(*args, **kwargs)
        if func in _FILLED:
            drawn = func(torch.empty(args[0].shape, dtype=torch.float64), *args[1:], **kwargs)
            return args[0].copy_(drawn)
        if func is torch.multinomial:
            return func(args[0].cpu().double(), *args[1:], **kwargs).to(args[0].device)
        if func in _DRAWN:
            device, dtype = kwargs.pop("device", None), kwargs.pop("dtype", None)
            wide = {} if func is torch.randint else {"dtype": torch.float64}
            return func(*args, **kwargs, **wide).to(device=device, dtype=dtype or torch.get_default_dtype())
        return func(*args, **kwargs)


@contextmanager
def drawn_on_the_cpu() -> Iterator[None]:
    """A context in which a key gives the same numbers on every device and in every dtype."""
    generator = Noise.generator

    def computed(kind: philox.Kind, key: int, step: int | Tensor, rows: Tensor, n: int) -> Tensor:
        # Logarithm and cosine of a device differ from those of the CPU in the last bit.
        return philox.drawn_by_torch(kind, key, int(step), rows.cpu(), n).to(rows.device)

    with (
        counting_everywhere(),
        mock.patch.object(philox, "_drawn", computed),
        mock.patch.object(Noise, "generator", lambda self, device="cpu": generator(self)),
        _DrawnOnCPU(),
    ):
        yield


def nets_for(name: str) -> dict[str, Callable[[], nn.Module]]:
    """Return small nets that the rule can train; without dropout, because its masks differ by device and dtype."""
    kind = RULES[name]
    if issubclass(kind, DiffusionRule):
        head = {"timed": kind.timed, "predicts": kind.predicts}
        wide: dict[str, Any] = {"width": 16, "blocks": 1 if kind.timed else 3, "head": head}
        return {
            "mlp": lambda: NETS["denoiser"](IN_SHAPE, 10, **wide),
            "conv": lambda: NETS["denoiser"](IN_SHAPE, 10, backbone={"name": "conv", "dropout": 0.0}, **wide),
        }
    return {
        "mlp": lambda: NETS["mlp"](IN_SHAPE, 10, hidden=[24, 16], activation="tanh", batch_norm=True),
        "conv": lambda: NETS["conv"](IN_SHAPE, 10, channels=[10, 20], activation="tanh"),
    }


def rules_for(name: str) -> dict[str, Callable[[], Rule]]:
    """Return the rule; for a population, one rule for each way to run the members."""
    kind = RULES[name]
    if not issubclass(kind, BlackBoxRule):
        return {name: kind}
    return {f"{name} {way}": lambda way=way: kind(evaluator=way) for way in get_args(EvaluatorName)}


def written(rule: Rule, net: nn.Module, device: torch.device, dtype: torch.dtype, precision: str) -> Tensor:
    """Return all gradients of one call of the rule as one vector, on the CPU in float64."""
    net = net.to(device=device, dtype=dtype)
    x = Noise().fold("x").randn(32, *IN_SHAPE, dtype=torch.float64)
    batch = Batch(x.to(device=device, dtype=dtype), torch.arange(32, device=device) % 10)
    trainer = Trainer(net, rule, Classify(10), "sgd")
    trainer.bind(batch)
    net.train()
    with arithmetic(precision, device):  # type: ignore[arg-type]
        rule.gradients(net, Classify(10), batch, Noise(0, 0))
    found = [p.grad for p in (*net.parameters(), *rule.parameters()) if p.grad is not None]
    return torch.cat([grad.detach().flatten() for grad in found]).cpu().double()


def check(name: str, device: torch.device) -> list[Error]:
    """Compare the gradients of a rule on each of its nets; a population's with those of one member after the other."""
    errors = []
    for shape, make_net in nets_for(name).items():
        expected = None
        for title, make_rule in rules_for(name).items():

            def run(
                where: torch.device | str,
                dtype: torch.dtype,
                precision: str = "float32_torch",
                make_net: Callable[[], nn.Module] = make_net,
                make_rule: Callable[[], Rule] = make_rule,
            ) -> Tensor:
                torch.manual_seed(0)
                with drawn_on_the_cpu():
                    return written(make_rule(), make_net(), torch.device(where), dtype, precision)

            try:
                expected = run("cpu", torch.float64) if expected is None else expected
                found = [run(device, dtype) for dtype in (torch.float64, torch.float32)]
                rounded = run(device, torch.float32, "bfloat16")
            except UserError:  # not every evaluator runs every net
                continue
            relative = [float((each - expected).norm() / expected.norm()) for each in found]
            cosine = float(torch.cosine_similarity(rounded, found[1], dim=0))
            errors.append(Error(title, shape, *relative, cosine))
    return errors
