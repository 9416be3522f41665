"""Launches, bytes and FLOPs of one step of each rule, counted without a device and without a clock.

    python benchmarks/traffic.py [--work mlp_large ...] [--rules dfa ...] [--lines dfa] [--quick]

The nets are those of `device_parts.py` in their full size, but their tensors are fake: torch computes shapes and types
and no numbers. So the counts are the same on every machine, and take seconds. A *launch* is an operation of torch that
starts a kernel; views and empty tensors start none. Its bytes are those of the tensors that it reads and writes, each
once. The optimiser is left out, since it does the same for every rule. Precision bfloat16 is autocast on the CPU.

All numbers are ratios to backprop. The floor for a local rule is the FLOPs: it saves the product that carries the error
to the layer below. Launches and bytes above that are what a rule could still save. `--lines` lists the operations of a
rule by the bytes that they move, with the line of bpfree that called them.
"""

import argparse
import copy
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from device_parts import CLASSES, WORKLOADS, Workload, placed
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from bpfree.noise import Noise, counting_everywhere
from bpfree.rule import Rule
from bpfree.rules import RULES
from bpfree.tasks import Classify
from bpfree.types import Batch

SHOWN = ["backprop", "dfa", "drtp", "local", "mono_forward", "pred", "sim", "predsim", "forward_forward"]
PRODUCTS, COPIES, REST = "products", "copies and casts", "the rest"
_COPIES = {"_to_copy", "copy_", "clone", "contiguous"}
_FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "lift_fresh"}


class Operation(NamedTuple):
    """An operation of torch that starts a kernel.

    Attributes:
        name: its name, such as "mm".
        kind: PRODUCTS, COPIES or REST.
        moved: bytes that it reads and writes.
        flops: its arithmetic, if it is a product.
        line: the line of bpfree that called it; "backward" if autograd did.
        shapes: of its inputs and outputs, for people.
    """

    name: str
    kind: str
    moved: int
    flops: int
    line: str
    shapes: str


class Traffic(TorchDispatchMode):
    """Notes every operation that starts a kernel.

    Attributes:
        operations: all of them, in the order in which they ran.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation of torch, and note it."""
        options = kwargs or {}
        out = func(*args, **options)
        name, line = func.overloadpacket.__name__, _line()
        if line.startswith("noise/"):
            return out  # where Triton is installed, a draw is one kernel
        if func.namespace != "aten" or name in _FREE or _is_view(func):
            return out
        read, written = _tensors((args, {**options, "out": None})), _tensors(out)
        packet = func.overloadpacket
        flops = flop_registry[packet](*args, **options, out_val=out) if packet in flop_registry else 0
        kind = COPIES if name in _COPIES else PRODUCTS if packet in flop_registry or name == "dot" else REST
        moved = sum(map(_bytes, read)) + sum(map(_bytes, written))
        shapes = " ".join(_form(t) for t in (*read, *written))
        self.operations.append(Operation(name, kind, moved, flops, line, shapes))
        return out


def _is_view(func: Any) -> bool:
    """True if the result lies in the memory of an input, which the operation does not write to."""
    returns = func._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def _tensors(tree: Any) -> list[Tensor]:
    return [t for t in tree_leaves(tree) if isinstance(t, Tensor)]


def _bytes(tensor: Tensor) -> int:
    """The bytes of a tensor; what an expanded tensor repeats counts once."""
    return prod(n for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride) * tensor.itemsize


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}".replace(" ", "")


def _line() -> str:
    if torch._C._current_graph_task_id() != -1:
        return "backward"
    frames = [f for f in traceback.extract_stack() if "/bpfree/" in f.filename]
    return f"{frames[-1].filename.rpartition('/bpfree/')[2]}:{frames[-1].lineno}" if frames else "?"


def counted(rule: str | Rule, work: Workload, precision: str, *, quick: bool) -> list[Operation]:
    """Return the operations of one step of a rule, without the optimiser.

    Args:
        rule: its name in `bpfree.rules.RULES`, or the rule.
        work: the net and the batch.
        precision: "float32" or "bfloat16".
        quick: True for the small net and a batch of 8.
    """
    shape, samples = (work.small_shape, 8) if quick else (work.shape, work.batch)
    torch.manual_seed(0)
    net, task = placed(work.make(quick), torch.device("cpu")), Classify(CLASSES)
    rule = RULES[rule]() if isinstance(rule, str) else rule
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # DRTP warns of activations without bound
        rule.bind(net, task, Batch(torch.randn(2, *shape), torch.arange(2)))
    fake = FakeTensorMode()
    with FakeCopyMode(fake):
        net, rule = copy.deepcopy(net), copy.deepcopy(rule)
    with fake:
        x = torch.empty(samples, *shape)
        x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
        return step(net, rule, Batch(x, torch.empty(samples, dtype=torch.int64)), precision)


def step(net: nn.Module, rule: Rule, batch: Batch, precision: str) -> list[Operation]:
    """Return the operations of a step of a rule that is bound to the net."""
    rounded = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False)
    with rounded, counting_everywhere():
        rule.gradients(net, Classify(CLASSES), batch, Noise(0, 0))  # a first step may make what later steps keep
    for p in (*net.parameters(), *rule.parameters()):
        p.grad = None
    with counting_everywhere(), Traffic() as traffic, rounded:
        rule.gradients(net, Classify(CLASSES), batch, Noise(0, 1))
    return traffic.operations


def table_of(title: str, found: dict[str, list[Operation]]) -> Table:
    """Return a table with a row for each rule; the first is the unit of all others."""
    table = Table(title=title)
    headings = ("rule", "launches", "FLOPs", "bytes", *(f"of {kind}" for kind in (PRODUCTS, COPIES, REST)))
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "rule" else "right")
    unit = next(iter(found.values()))
    whole = sum(each.moved for each in unit)
    for rule, operations in found.items():
        moved = Counter[str]()
        for each in operations:
            moved[each.kind] += each.moved
        cells = [f"{len(operations)} ({len(operations) / len(unit):.2f})"]
        cells.append(f"{sum(each.flops for each in operations) / sum(each.flops for each in unit):.2f}")
        cells += [
            f"{part / whole:.2f}" for part in (moved.total(), *(moved[kind] for kind in (PRODUCTS, COPIES, REST)))
        ]
        table.add_row(rule, *cells)
    return table


def lines_of(title: str, operations: list[Operation]) -> Table:
    """Return a table of a rule's operations, those that move the most bytes first."""
    groups: dict[tuple[str, str, str], list[Operation]] = defaultdict(list)
    for each in operations:
        groups[each.line, each.name, each.shapes].append(each)
    table = Table("MB", "launches", "operation", "line", "shapes", title=title)
    for (line, name, shapes), group in sorted(groups.items(), key=lambda g: -sum(each.moved for each in g[1])):
        table.add_row(f"{sum(each.moved for each in group) / 1e6:.3f}", str(len(group)), name, line, shapes)
    return table


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--precision", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--rules", nargs="+", default=SHOWN)
    parser.add_argument("--lines", nargs="*", default=[], help="rules whose operations are listed")
    parser.add_argument("--quick", action="store_true", help="small nets and batches")
    options = parser.parse_args()
    console = Console(width=150)
    for name in options.work:
        for precision in options.precision:
            title = f"{name}, {precision}, as a ratio to backprop"
            names = dict.fromkeys(["backprop", *options.rules, *options.lines])
            found = {rule: counted(rule, WORKLOADS[name], precision, quick=options.quick) for rule in names}
            console.print(table_of(title, found))
            for rule in options.lines:
                console.print(lines_of(f"{rule}, {name}, {precision}", found[rule]))


if __name__ == "__main__":
    main()
