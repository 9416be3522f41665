"""Places within the blocks of a net, and behind its embedding, where a cut is sound beside cuts behind the blocks.

A block of a Transformer adds attention to its input, and then a feed-forward net of two matrices. We look for

- a place behind the attention: the last sound one before the first matrix. In a net that normalises behind each branch
  this is the normalisation, as in Launay et al. 2020. In a net that normalises before each branch it is the attention
  itself: a cut behind the next normalisation would miss what goes around it.
- a place behind the first matrix: what the second one reads. An activation that is a module lies before this place.

Which modules these are is read from a recorded forward pass and not from names, so blocks of other libraries have such
places too. Where no place is sound there is none. In a gated feed-forward net of three matrices, two read the same
normalisation. In a net that normalises before each branch, the embedding goes around the attention of the first block,
so this block is cut within only if the embedding is cut off.
"""

from collections.abc import Callable, Iterable, Sequence

from torch import nn

from bpfree.errors import UserError
from bpfree.inputs import Inputs
from bpfree.local.autotaps import Blocks
from bpfree.local.segments import joins_next_stage

_OUTPUT = -1  # the run of the whole net


class Within:
    """Places of a net within the segments between some taps.

    Args:
        net: any module; it is run once.
        x: [B, ...], a few samples.
        taps: sound taps, such as the ends of blocks.
    """

    def __init__(self, net: nn.Module, x: Inputs, taps: Sequence[str]) -> None:
        self._graph = Blocks(net, x)
        self._names = {index: name for name, index in self._graph.names.items()}
        self._cuts = {self._graph.names[tap] for tap in taps}
        inside = [module for module in net.modules() if isinstance(module, nn.Embedding) or joins_next_stage(module)]
        embedded = {id(p) for module in inside for p in module.parameters()}
        self._embedding = sum(1 << i for i, p in enumerate(net.parameters()) if id(p) in embedded)

    @property
    def taps(self) -> list[str]:
        """The taps, with the places that were added, in the order in which they run."""
        return [self._names[index] for index in sorted(self._cuts)]

    def add_embedding(self) -> None:
        """Add the place behind the embedding.

        Raises:
            UserError: there is no embedding, or a connection goes around it.
        """
        found = [index for index in self._names if self._is_sound(index, of_embedding=True)]
        if not found:
            raise UserError(
                f"cut_embedding: found true, but {type(self._graph.net).__name__} has no embedding behind which it can "
                "be cut, allowed: false. An embedding is an nn.Embedding, or a module with joins_next_stage = True"
            )
        self._cuts.add(max(found))

    def add_layers(self) -> None:
        """Add the places behind attentions, and behind the first matrices of feed-forward nets."""
        for end in (*self._cuts, _OUTPUT):
            matrices = sorted(run for run in self._ancestors(end) | {end} if self._is_matrix(run))
            if end == _OUTPUT:
                matrices = matrices[:-1]  # without the read-out
            if matrices:
                second = matrices[-1]
                self._cuts |= self._nearest(self._nearest([second], self._is_matrix), self._is_sound)
                self._cuts |= self._nearest([second], self._is_sound)

    def _before(self, runs: Iterable[int]) -> set[int]:
        """The runs that some runs read, in the same segment."""
        return {before for run in runs for before in self._graph.before[run]} - self._cuts

    def _ancestors(self, end: int) -> set[int]:
        found, ahead = set[int](), self._before([end])
        while ahead:
            found |= ahead
            ahead = self._before(ahead) - found
        return found

    def _nearest(self, runs: Iterable[int], wanted: Callable[[int], bool]) -> set[int]:
        """The last runs before some runs, in the same segment, that are as wanted."""
        found, seen, ahead = set[int](), set[int](), self._before(runs)
        while ahead:
            seen |= ahead
            new = {run for run in ahead if wanted(run)}
            found |= new
            ahead = self._before(ahead - new) - seen
        return found

    def _is_matrix(self, index: int) -> bool:
        return bool(index != _OUTPUT and self._graph.own[index] & self._graph.weights & ~self._embedding)

    def _is_sound(self, index: int, *, of_embedding: bool = False) -> bool:
        """True if a segment has a weight before this run, and all that is before it reaches the end through it only."""
        graph = self._graph
        name = self._names.get(index)
        if name is None or graph.times[name] != 1 or index in graph.changed or index not in graph.by_sample:
            return False
        mine, others = self._reached(index, self._cuts), 0
        for end in {*self._cuts, _OUTPUT} - {index}:
            others |= self._reached(end, {*self._cuts, index})
        beyond = bool(mine & graph.weights & ~self._embedding)
        return bool(mine & graph.weights) and beyond != of_embedding and not mine & others & graph.trained

    def _reached(self, end: int, stops: set[int]) -> int:
        """The parameters, as bits, from which a run was computed behind others."""
        parameters, stack, seen = 0, [end], set[int]()
        while stack:
            at = stack.pop()
            if at not in seen and (at == end or at not in stops):
                seen.add(at)
                parameters |= self._graph.own[at]
                stack += self._graph.before[at]
        return parameters
