"""Find places where a net can be cut, for a net that comes without taps.

One forward pass records from which inputs each module computed its output. A cut behind a module is *sound* if the
parameters before the cut reach the net's output through this module only. A connection around the module, or a weight
that is used on both sides, makes a cut unsound. Among the sound cuts we take those behind whole blocks of the net, not
those behind every layer of a block.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, reduce
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from bpfree.errors import UserError
from bpfree.inputs import Inputs, count, features_of, forward, with_features
from bpfree.local.segments import Segment, begins_stage, joins_next_stage, owners, passes_on, rehearsal, stages
from bpfree.nets.acceptance import eager, inner

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_OUTPUT = -1  # the run of the whole net


class Found(NamedTuple):
    """The segments of a net without given taps.

    Attributes:
        segments: in the order in which they run; the last is the output segment.
        searched: False if they are simply the stages of a Sequential, True if cuts had to be searched.
    """

    segments: list[Segment]
    searched: bool


def find_segments(net: nn.Module, x: Inputs) -> Found:
    """Return the segments of a net without given taps: the stages of a Sequential, or those between sound cuts.

    Args:
        net: any module; buffers and random state come out as they went in.
        x: [B, ...], a few samples, as `bpfree.inputs.forward` takes them.

    Returns:
        The segments, and whether cuts were searched.

    Raises:
        UserError: the net has several layers, and no sound cut.
    """
    prefix, unwrapped = inner(net)
    failure: UserError | None = None
    if isinstance(unwrapped, nn.Sequential) and (names := stages(unwrapped)):
        try:
            return Found(owners(net, [prefix + name for name in names], x), searched=False)
        except UserError as error:
            failure = error
    blocks = Blocks(net, x)
    taps = _checked(net, blocks.taps(), x)
    if not taps:
        owners(net, (), x)  # raises the more precise error if checkpointing hides parameters from the graph
        if failure is not None:
            raise failure
        blocks.refuse_several_layers()
    return Found(owners(net, taps, x), searched=bool(taps))


def taps_behind_dropout(net: nn.Module, x: Inputs) -> list[str] | None:
    """Return the taps that `find_segments` would take, each moved behind a dropout that follows it in its Sequential.

    A rule that uses them sends no error to units that are dropped.

    Args:
        net: any module.
        x: [B, ...], a few samples.

    Returns:
        The taps, or None if no dropout follows any of them.

    Raises:
        UserError: see `find_segments`.
    """
    if not any(isinstance(module, DROPOUTS) for module in net.modules()):
        return None  # so that most nets are searched once
    taps = [segment.name for segment in find_segments(net, x).segments[:-1]]
    moved = [_behind_dropout(net, tap) for tap in taps]
    return moved if moved != taps else None


def _behind_dropout(net: nn.Module, tap: str) -> str:
    """The name of the last dropout that directly follows a module in a Sequential; the module's own if none does."""
    prefix, _, child = tap.rpartition(".")
    parent = net.get_submodule(prefix)
    if type(parent).forward is not nn.Sequential.forward:
        return tap  # only its author knows what follows
    names = list(parent._modules)
    following = names[names.index(child) + 1 :]
    dropouts = list(takewhile(lambda name: isinstance(parent._modules[name], DROPOUTS), following))
    return f"{prefix}.{dropouts[-1]}".removeprefix(".") if dropouts else tap


def _checked(net: nn.Module, taps: Sequence[str], x: Inputs) -> Sequence[str]:
    """The taps, without those that fail when the net is really cut.

    The recorded graph does not show everything: a module that changes a tapped output in place is seen only here.
    """
    try:
        owners(net, taps, x)
    except UserError:
        return [tap for tap in taps if _is_sound(net, tap, x)]
    return taps


def _is_sound(net: nn.Module, tap: str, x: Inputs) -> bool:
    try:
        owners(net, [tap], x)
    except UserError:
        return False
    return True


class _Run(NamedTuple):
    """A run of a module in the recorded forward pass.

    Attributes:
        name: the name of the module.
        h: its output, with the graph from which it was computed.
        leaf: a detached copy of h, at which the graphs of later runs end.
        passed: a clone of `leaf`, which went on through the net in place of h.
        version: the version counter of `passed`; an operation in place increases it.
    """

    name: str
    h: Tensor
    leaf: Tensor
    passed: Tensor
    version: int


class Blocks:
    """The runs of all modules in one forward pass, as a graph in which cuts can be tested.

    Sets of parameters are the bits of an integer: a net has thousands of modules, and a cut is tested for each of them,
    so unions and intersections must be one machine operation and not a loop.

    Args:
        net: any module; it is run once.
        x: [B, ...], a few samples.
    """

    def __init__(self, net: nn.Module, x: Inputs) -> None:
        self.net = net
        self.modules = dict(net.named_modules())
        bits = {id(p): 1 << i for i, p in enumerate(net.parameters())}
        self.trained = _union(bits[id(p)] for p in net.parameters() if p.requires_grad)
        self.weights = _union(
            bits[id(p)]
            for module in net.modules()
            if begins_stage(module, recurse=False)
            for p in module.parameters(recurse=False)
        )
        runs, out, self.times = _record(net, x)
        places = {id(run.leaf): i for i, run in enumerate(runs)}
        self.names = {run.name: i for i, run in enumerate(runs)}
        self.changed = {i for i, run in enumerate(runs) if run.passed._version != run.version}
        self.by_sample = {i for i, run in enumerate(runs) if run.h.dim() > 1 and len(run.h) == count(x)}
        made = {i: run.h for i, run in enumerate(runs)} | {_OUTPUT: out}
        self.own: dict[int, int] = {}  # parameters that a run reads directly, and not through the output of another run
        self.before: dict[int, list[int]] = {}  # the runs whose output a run reads
        for i, h in made.items():
            leaves = _leaves(h)
            self.own[i] = _union(bits.get(leaf, 0) for leaf in leaves)
            self.before[i] = [places[leaf] for leaf in leaves if leaf in places]
        self.reached: dict[int, int] = {}  # parameters from which the output of a run was computed
        # A run reads only earlier runs, so their sets are complete when the loop comes to it.
        for i in (*range(len(runs)), _OUTPUT):
            self.reached[i] = reduce(int.__or__, (self.reached[j] for j in self.before[i]), self.own[i])

    def taps(self) -> list[str]:
        """Return the sound taps at block level, in the order in which they run."""
        opened: set[str] = set()
        names = self._below("")
        # A net is often one big module around its blocks. As long as fewer than two blocks are in sight, look inside.
        while len(wide := [n for n in names if is_block(self.modules[n]) and n not in opened]) < 2 and wide:
            opened.update(wide)
            names = [name for n in names for name in ([*self._below(f"{n}."), n] if n in wide else [n])]
        return self._ends(sorted(set(names), key=self.names.__getitem__))

    def refuse_several_layers(self) -> None:
        """Raise UserError if a net without sound cuts has several layers: it would be trained by plain backprop.

        Raises:
            UserError: the net has more than one layer.
        """
        layers = [name for name, m in self.modules.items() if any(p.dim() > 1 for p in m.parameters(recurse=False))]
        if len(layers) < 2:
            return
        tied = [name for i, (name, _) in enumerate(self.net.named_parameters()) if self._always_shared >> i & 1]
        why = (
            f"the parameter '{tied[0]}' is used before and behind each of them (freeze it, or do not share it; nets "
            "of Hugging Face have the option tie_word_embeddings=False)"
            if tied
            else "a connection goes around each of them, or nothing that learns comes behind it"
        )
        raise UserError(
            f"taps: none were given, and {type(self.net).__name__} has no block behind which it can be cut: {why}. "
            "print(bpfree.taps(net, x)) shows why for each module. Use a rule that needs no cut, such as backprop, fa "
            "or es, or change the net"
        )

    @cached_property
    def _always_shared(self) -> int:
        """Trained parameters that every possible cut would leave on both sides."""
        once = [name for name, i in self.names.items() if self.times[name] == 1 and self.reached[i] & self.weights]
        # Single layers may run beside each other, as two embeddings do, and then nothing is common to all of them.
        once = [name for name in once if is_block(self.modules[name])] or once
        places = {self.names[name] for name in once} - self._at_the_end
        shared = [self.reached[i] & self._around(i) for i in places]
        return reduce(int.__and__, shared, self.trained) if shared else 0

    @cached_property
    def _at_the_end(self) -> set[int]:
        return {i for i in self.names.values() if not self._around(i) & self.weights}

    def _ends(self, names: Sequence[str]) -> list[str]:
        """The last name of each stage, by the same rules as `bpfree.local.segments.stages`."""
        taps: list[str] = []
        covered = 0
        for name in names:
            reached = self.reached[self.names[name]]
            if reached & self.weights & ~covered and not joins_next_stage(self.modules[name]):
                taps.append(name)
            elif taps and not passes_on(self.modules[name]):
                end = self.reached[self.names[taps[-1]]]
                if reached & end == end:
                    taps[-1] = name
            covered |= reached
        return taps

    def _below(self, prefix: str) -> list[str]:
        """The outermost sound modules within a module."""
        module = self.modules[prefix[:-1]]
        names: list[str] = []
        for child, _ in module.named_children():
            name = prefix + child
            # `named_modules` has one name for a module that is registered at several places.
            if name in self.modules and not _makes_weights(self.modules[name]):
                names += [name] if self._is_sound(name) else self._below(f"{name}.")
        return names

    def _is_sound(self, name: str) -> bool:
        index = self.names.get(name)
        if index is None or self.times[name] != 1 or index in self.changed or index not in self.by_sample:
            return False
        around, reached = self._around(index), self.reached[index]
        return bool(reached & self.weights) and bool(around & self.weights) and not reached & around & self.trained

    def _around(self, index: int) -> int:
        """Parameters that the net's output reaches without passing a run; all of them, if it does not use the run."""
        parameters, stack, seen = 0, [_OUTPUT], set[int]()
        while stack:
            at = stack.pop()
            if at != index and at not in seen:
                seen.add(at)
                parameters |= self.own[at]
                stack += self.before[at]
        return parameters


def _record(net: nn.Module, x: Inputs) -> tuple[list[_Run], Tensor, dict[str, int]]:
    """Run the net once: the runs in order, the output, and how often each module ran."""
    runs: list[_Run] = []
    times: dict[str, int] = {}

    def hook(name: str):  # type: ignore[no-untyped-def]
        def look(module: nn.Module, args: object, given: object) -> Any:
            times[name] = times.get(name, 0) + 1
            h = features_of(given)
            if h is None or not h.requires_grad:
                return None
            with torch.enable_grad():
                leaf = h.detach().requires_grad_()
                passed = leaf.clone()  # later modules may change it in place, which a leaf does not allow
            runs.append(_Run(name, h, leaf, passed, passed._version))
            return with_features(given, passed)  # the rest keeps its graph: if the net uses it, no cut is sound here

        return look

    handles = [module.register_forward_hook(hook(name)) for name, module in net.named_modules() if name]
    try:
        with _all_trained(net), rehearsal(net, x), eager():
            out = forward(net, x)
    finally:
        for handle in handles:
            handle.remove()
    return runs, out, times


@contextmanager
def _all_trained(net: nn.Module) -> Iterator[None]:
    """Unfreeze all parameters for a while, so that the graph shows them and cuts do not depend on what is frozen."""
    frozen = [p for p in net.parameters() if not p.requires_grad and p.is_floating_point()]
    for p in frozen:
        p.requires_grad_()
    try:
        yield
    finally:
        for p in frozen:
            p.requires_grad_(False)


def _leaves(h: Tensor) -> set[int]:
    """Ids of the tensors at which the graph of h ends."""
    if h.grad_fn is None:
        return {id(h)}
    leaves, seen, stack = set[int](), {h.grad_fn}, [h.grad_fn]
    while stack:
        node = stack.pop()
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                stack.append(following)
    return leaves


def is_block(module: nn.Module) -> bool:
    """Return True if a module has several layers with weights.

    Args:
        module: any module; layers that only compute a weight, as those of spectral_norm, do not count.
    """
    return sum(begins_stage(m, recurse=False) and not _makes_weights(m) for m in module.modules()) > 1


def _makes_weights(module: nn.Module) -> bool:
    """True if the module computes a weight, as spectral_norm does, and not features."""
    return isinstance(module, ParametrizationList)


def _union(bits: Iterator[int]) -> int:
    return reduce(int.__or__, bits, 0)
