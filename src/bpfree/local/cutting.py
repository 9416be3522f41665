"""A rule's own cut of a net: what passes from segment to segment, and from process to process."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn

from bpfree.inputs import Inputs, count, main_input
from bpfree.local.cut import cut
from bpfree.local.layers import SeenInputs, SeesInputs, watched
from bpfree.local.parts import EarlierSegments
from bpfree.mesh import Lane, PassedOn
from bpfree.types import Scalars


class CutsNet(SeesInputs):
    """A base class of rules that run a net cut at taps.

    Attributes:
        taps: names of submodules; behind each the graph is cut.
        lane: the segments of this process, if several processes train different ones; None for all of them.
    """

    taps: tuple[str, ...]
    lane: Lane | None = None
    _held: list[list[str]] = []  # the names of the tensors of each segment, for a lane
    _earlier: EarlierSegments | None = None
    _layers: dict[str, int] = {}  # by the name of a layer, its hidden segment

    def pass_on(self, index: int, h: Tensor) -> Tensor:
        """Return what the next segment sees of the output h of segment `index`; default: h itself.

        Args:
            index: number of the segment.
            h: [B, ...], its output, detached.
        """
        return h

    def error_of(self, net: nn.Module) -> nn.Module | None:
        """Return the module at whose input a rule that `needs_error` takes the error; None, the default: the output.

        A rule with such a place has the `output_weight` 1.

        Args:
            net: the net that the rule is bound to.

        Returns:
            A module of the output segment that runs once in a pass and takes one tensor, or None.
        """
        return None

    def noted(self, scalars: Scalars) -> Scalars:
        """Return the scalars of a segment; they are kept if the pass ends before the output of the net."""
        if self.lane is not None:
            self.lane.losses |= scalars
        return scalars

    @contextmanager
    def cut_net(
        self, net: nn.Module, x: Inputs, visit: Callable[[int, Tensor], object], *, attached: bool = False
    ) -> Iterator[None]:
        """While active, a forward pass of the net is cut at the taps, as `bpfree.local.cut.cut` does it.

        Rules that run the net themselves use it. The next segment sees what `pass_on` returns. If other processes train
        other segments, the pass begins with the features of the process before, and ends by `PassedOn` where the next
        one goes on.

        Args:
            net: the net that the rule is bound to.
            x: [B, ...], the samples of the pass.
            visit: called with the index and the output h [B, ...] of each hidden segment, attached to that segment.
            attached: True to leave the graph whole; h is then attached to the segments before as well.

        Raises:
            PassedOn: within the block, if the net goes on in another process.
        """

        def go_on(index: int, h: Tensor) -> Tensor:
            if self.lane is not None and index + 1 < self.lane.first:
                return h
            if self.lane is not None and index + 1 == self.lane.first:
                self._skipped(net, self.lane.first).are_over = True
                passed = self.lane.receive(count(x), self.lane.group.rank - 1, main_input(x).device)
            else:
                visit(index, h)
                passed = again(index, h)
                self._leave(index, passed, x)
            if self.inputs_seen is not None:
                self.inputs_seen.segments[index + 1] = passed.detach()
            return passed

        def again(index: int, h: Tensor) -> Tensor:
            # Activation checkpointing computes the segment a second time, in a backward pass: it has learned already.
            return self.pass_on(index, h if attached else h.detach())

        with ExitStack() as stack:
            if self.lane is not None and self.lane.first:
                stack.enter_context(self._skipped(net, self.lane.first).skipped())
            if self.sees_inputs:
                self.inputs_seen = SeenInputs(x, len(self.taps))
                stack.callback(self._forget_all_inputs)
                stack.enter_context(watched(net, self._layers, self.inputs_seen.layers))
            stack.enter_context(cut(net, self.taps, go_on, again, attached=attached))
            yield

    def _forget_all_inputs(self) -> None:
        self.inputs_seen = None

    def _leave(self, index: int, passed: Tensor, x: Inputs) -> None:
        """Send the features to the next process, if it goes on, and end the pass."""
        lane = self.lane
        if lane is not None and index + 1 == lane.end and not lane.is_last:
            lane.send(passed.detach(), count(x), lane.group.rank + 1)
            raise PassedOn

    def _skipped(self, net: nn.Module, first: int) -> EarlierSegments:
        if self._earlier is None:
            self._earlier = EarlierSegments(net, [name for names in self._held[:first] for name in names])
        return self._earlier
