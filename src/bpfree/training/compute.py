"""The options of a training that change speed and memory, but not the task or the rule."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import torch

from bpfree.errors import UserError, check_choice, shown
from bpfree.nets.acceptance import eager
from bpfree.rule import Rule
from bpfree.spec import Spec, check_options
from bpfree.training.determinism import settings
from bpfree.training.graphs import Graph
from bpfree.training.mesh import MeshSpec
from bpfree.training.precision import Precision, arithmetic, refuse_float16

Update = Literal["together", "fused"]


# One object, so that a new option needs neither another argument of Trainer nor of the functions that call it.
@dataclass(frozen=True)
class Compute:
    """Options of how a training computes.

    Args:
        precision: number type of the forward passes. "bfloat16" runs them under autocast; parameters keep their type.
            "float32" may use another library for matrix products where this is as accurate and faster (see
            `bpfree.training.precision`); "float32_torch" leaves the choice to torch, and is taken for nets with
            attention on a CPU. On CUDA both are as torch is set, which by default rounds only the operands of
            convolutions to TF32. "tf32" rounds those of matrix products, too; a device without TF32 computes in
            float32. "auto" is bfloat16 where the device multiplies it in hardware, else float32. "float16" is refused,
            since its gradients would need scaled losses.
        update: "together" steps all parameters when all gradients are there. "fused" steps the parameters of a segment
            as soon as their gradients are there, and then frees these gradients. The weights are the same, and only one
            segment's gradients are in memory at a time. For local rules.
        graph: "auto" captures the step as a CUDA graph where the device and the step allow it, and replays it: the bits
            are the same, and a small net trains many times as fast. "on" refuses a device that has no graphs, and
            "off" takes each step by Python. See `bpfree.training.graphs`.
        deterministic: True for operations that give the same bits in each run on one device, also where others are
            faster. An operation that does not have such a form raises an error.
        mesh: how the processes that torchrun started share the training: "auto", "data", "blocks", "population", or
            "none"; see `bpfree.training.mesh.MeshSpec`.

    Raises:
        UserError: an unknown precision, update or graph, or a deterministic that is neither true nor false.
    """

    precision: Precision = "float32"
    update: Update = "together"
    graph: Graph = "auto"
    deterministic: bool = False
    mesh: MeshSpec | Spec = "auto"

    def __post_init__(self) -> None:
        refuse_float16("compute.precision", self.precision)
        check_choice("compute.precision", self.precision, get_args(Precision))
        check_choice("compute.update", self.update, get_args(Update))
        check_choice("compute.graph", self.graph, get_args(Graph))
        if not isinstance(self.deterministic, bool):
            raise UserError(f"compute.deterministic: found {shown(self.deterministic)}, allowed: true or false")
        MeshSpec.of(self.mesh, "compute.mesh").check()

    @classmethod
    def of(cls, spec: "Compute | str | Mapping[str, Any]") -> "Compute":
        """Return the options that a spec describes.

        Args:
            spec: a Compute, the name of a precision, or a mapping with the options.

        Raises:
            UserError: the spec is none of these, or has an unknown option or value.

        Example:
            >>> Compute.of({"update": "fused"})
            Compute(precision='float32', update='fused', graph='auto', deterministic=False, mesh='auto')
        """
        if isinstance(spec, Compute):
            return spec
        if isinstance(spec, str):
            return cls(precision=spec)  # type: ignore[arg-type]  # __post_init__ checks it
        if not isinstance(spec, Mapping):
            options = ", ".join(each.name for each in fields(cls))
            raise UserError(f"compute: found {shown(spec)}, allowed: a precision, or a mapping with {options}")
        return cls(**check_options(cls, spec, "compute"))


@contextmanager
def arithmetic_of(
    rule: Rule, precision: Precision, device: torch.device, deterministic: bool | None = None
) -> Iterator[None]:
    """Compute forward passes within the block as a training of this rule does.

    Args:
        rule: the rule. If it looks inside the net, a compiled net runs as it was written: a compiler may fuse the
            modules whose inputs and outputs the rule needs.
        precision: any but "auto"; see `bpfree.training.precision.resolve`.
        device: the device of the net.
        deterministic: see `bpfree.training.determinism.settings`; None to leave torch as it is.
    """
    torch_settings = nullcontext() if deterministic is None else settings(deterministic, device)
    with torch_settings, eager() if rule.looks_inside else nullcontext(), arithmetic(precision, device):
        yield
