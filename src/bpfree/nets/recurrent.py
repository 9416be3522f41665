"""Recurrent nets: GRU, LSTM, and liquid (closed-form continuous-time) layers under a linear read-out.

`gru`: Cho et al. 2014, https://arxiv.org/abs/1406.1078. `lstm`: Hochreiter & Schmidhuber 1997,
https://doi.org/10.1162/neco.1997.9.8.1735. Both are torch's. `liquid`: Hasani et al. 2022, "Closed-form
continuous-time neural networks", https://doi.org/10.1038/s42256-022-00556-7, by the authors' package `ncps`:

    h' = s * g2(x, h) + (1 - s) * g1(x, h),    s = sigmoid(a(x, h) dt + b(x, h)),    dt = 1

with g1, g2 (behind a tanh), a and b linear in a shared layer of [x, h].

A net is a Sequential whose stages are its layers, so a local rule cuts it between layers, [B, T, H] for all T steps at
once. In time it is cut by `detach`: a layer then sees its state of the step before as a constant. What is learned by:

    backprop                backpropagation through time (BPTT), and through the layers
    backprop, detach        through the layers of one step: BPTT truncated to one step
    local rules, dfa        through the steps of one layer
    the same, detach        through one layer at one step: nothing travels back, neither in time nor in depth
    black-box rules         nothing is differentiated, with or without

None of them follows how a weight has acted on the state over time, as RTRL and e-prop do; with `detach` a layer learns
what its weights do now, and to keep something for later is beyond it. `detach` is about the way back: what a net
computes is the same. Derivatives in forward mode (`forward_gradient`) are not cut by it.
"""

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import TypedDict, Unpack

import torch
from torch import Tensor, nn

from bpfree.errors import UserError, check_positive

State = tuple[Tensor, ...]
"""Of a layer, each [B, H]."""


class Rows(nn.Module):
    """Images [B, C, H, W] as sequences of rows [B, H, C*W]; sequences [B, T, F] pass as they are."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, F]."""
        return x.transpose(1, 2).flatten(2) if x.dim() == 4 else x


class LastStep(nn.Module):
    """The features of the last step."""

    def forward(self, h: Tensor) -> Tensor:
        """[B, T, H] -> [B, H]."""
        return h[:, -1]


class RecurrentLayer(nn.Module):
    """A layer over all steps, which can also go on by one.

    Args:
        hidden: H.
        detach: whether the state is a constant to the step that takes it over, so that no error goes back in time.
    """

    def __init__(self, hidden: int, detach: bool) -> None:
        super().__init__()
        self.hidden = hidden
        self.detach = detach

    @abstractmethod
    def step(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        """[B, F] and the state (None: zeros) -> features [B, H] and the state behind them."""

    def over_time(self, x: Tensor) -> Tensor:
        """Features [B, T, H] of sequences [B, T, F], step by step."""
        state, features = None, []
        for x_t in x.unbind(1):
            h, state = self.step(x_t, state)
            features.append(h)
        return torch.stack(features, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, T, H] of sequences [B, T, F]."""
        if not (self.detach and torch.is_grad_enabled()):
            return self.over_time(x)
        h, _ = self.step(x.flatten(0, 1), self._states_before(x))  # known as constants, all steps are one batch
        return h.view(*x.shape[:2], -1)

    @torch.no_grad()
    def _states_before(self, x: Tensor) -> State:
        """What each step starts from, each [B*T, H]."""
        _, state = self.step(x[:, 0], None)
        before = [tuple(torch.zeros_like(part) for part in state)]
        for x_t in x[:, :-1].unbind(1):
            before.append(self.step(x_t, before[-1])[1])
        return tuple(torch.stack(parts, 1).flatten(0, 1) for parts in zip(*before, strict=True))


class GRULayer(RecurrentLayer):
    """A layer of gated recurrent units.

    Args:
        features: F of the input.
        hidden: H.
        detach: see RecurrentLayer.
    """

    def __init__(self, features: int, hidden: int, detach: bool) -> None:
        super().__init__(hidden, detach)
        self.rnn = nn.GRU(features, hidden, batch_first=True)

    def over_time(self, x: Tensor) -> Tensor:
        """See the base class; torch has a faster way."""
        h: Tensor = self.rnn(x)[0]
        return h

    def step(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        """See the base class."""
        _, h = self.rnn(x.unsqueeze(1), None if state is None else state[0].unsqueeze(0))
        return h[0], (h[0],)


class LSTMLayer(RecurrentLayer):
    """A layer of long short-term memory; its state is [B, H] of features and [B, H] of cells.

    Args:
        features: F of the input.
        hidden: H.
        detach: see RecurrentLayer.
    """

    def __init__(self, features: int, hidden: int, detach: bool) -> None:
        super().__init__(hidden, detach)
        self.rnn = nn.LSTM(features, hidden, batch_first=True)

    def over_time(self, x: Tensor) -> Tensor:
        """See the base class; torch has a faster way."""
        h: Tensor = self.rnn(x)[0]
        return h

    def step(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        """See the base class."""
        given = None if state is None else (state[0].unsqueeze(0), state[1].unsqueeze(0))
        _, (h, c) = self.rnn(x.unsqueeze(1), given)
        return h[0], (h[0], c[0])


class LiquidLayer(RecurrentLayer):
    """A layer of closed-form continuous-time (CfC) neurons; see the module.

    Args:
        features: F of the input.
        hidden: H.
        detach: see RecurrentLayer.
        backbone: width of the layer that g1, g2, a and b share.
    """

    def __init__(self, features: int, hidden: int, detach: bool, *, backbone: int) -> None:
        super().__init__(hidden, detach)
        try:
            from ncps.torch import CfCCell
        except ModuleNotFoundError as error:
            raise UserError(
                "net: found liquid, which needs the package ncps. Install it: pip install 'bpfree[liquid]'"
            ) from error
        self.cell = CfCCell(features, hidden, backbone_units=backbone)

    def step(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        """See the base class."""
        h = x.new_zeros(len(x), self.hidden) if state is None else state[0]
        h, _ = self.cell(x, h, 1.0)
        return h, (h,)


class Recurrent(nn.Sequential):
    """Recurrent layers and a linear read-out of each step, or of the last.

    Args:
        in_shape: of one sample: [steps, values], or an image [channels, height, width], which is read row by row.
        out_features: D.
        make: (features, hidden, detach) -> a layer.
        hidden: H of each layer.
        detach: no error goes back in time; see `RecurrentLayer`.
        each_step: whether the net answers at each step, [B, T, D], as the task `sequence` needs it, or at the end,
            [B, D].
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_features: int,
        make: Callable[[int, int, bool], RecurrentLayer],
        *,
        hidden: Sequence[int] = (64,),
        detach: bool = False,
        each_step: bool = False,
    ) -> None:
        for width in hidden:
            check_positive("net.hidden", width)
        if not hidden:
            raise UserError("net.hidden: found none, allowed: the width of at least one layer")
        layers: OrderedDict[str, nn.Module] = OrderedDict(rows=Rows())
        for i, (features, width) in enumerate(pairwise([_features(in_shape), *hidden]), start=1):
            layers[f"rnn{i}"] = make(features, width, detach)
        if not each_step:
            layers["last"] = LastStep()
        layers["fc"] = nn.Linear(hidden[-1], out_features)
        super().__init__(layers)

    def step(self, x: Tensor, state: tuple[State, ...] | None) -> tuple[Tensor, tuple[State, ...]]:
        """One step: [B, F] and the states of the layers (None: zeros) -> output [B, D] and the states behind it.

        What it gives after T steps is what the net gives for all of them, in a time that does not grow with T.
        """
        states: list[State] = []
        layers = [layer for layer in self if isinstance(layer, RecurrentLayer)]
        for i, layer in enumerate(layers):
            x, behind = layer.step(x, None if state is None else state[i])
            states.append(behind)
        out: Tensor = self.get_submodule("fc")(x)
        return out, tuple(states)


class RecurrentOptions(TypedDict, total=False):
    """What every recurrent net takes; see `Recurrent` for the meaning and the defaults."""

    hidden: Sequence[int]
    detach: bool
    each_step: bool


def gru(in_shape: int | Sequence[int], out_features: int, **options: Unpack[RecurrentOptions]) -> Recurrent:
    """Gated recurrent units; see `Recurrent` for its arguments, and the module."""
    return Recurrent(_shape(in_shape), out_features, GRULayer, **options)


def lstm(in_shape: int | Sequence[int], out_features: int, **options: Unpack[RecurrentOptions]) -> Recurrent:
    """Long short-term memory; see `Recurrent` for its arguments, and the module."""
    return Recurrent(_shape(in_shape), out_features, LSTMLayer, **options)


def liquid(
    in_shape: int | Sequence[int], out_features: int, *, backbone: int = 64, **options: Unpack[RecurrentOptions]
) -> Recurrent:
    """Closed-form continuous-time (CfC) neurons; see `Recurrent` and the module. Needs the package ncps.

    Args:
        in_shape: [steps, values] or [channels, height, width] of one sample.
        out_features: D.
        backbone: width of what the four maps of a layer share.
        options: see `Recurrent`.
    """
    check_positive("net.backbone", backbone)
    return Recurrent(_shape(in_shape), out_features, partial(LiquidLayer, backbone=backbone), **options)


def _shape(in_shape: int | Sequence[int]) -> tuple[int, ...]:
    return (in_shape,) if isinstance(in_shape, int) else tuple(in_shape)


def _features(in_shape: Sequence[int]) -> int:
    """F of a step."""
    if len(in_shape) == 2:
        return in_shape[1]
    if len(in_shape) == 3:
        return in_shape[0] * in_shape[2]
    raise UserError(
        f"net: found samples of shape {list(in_shape)}, allowed in a recurrent net: [steps, values], or images "
        "[channels, height, width], whose rows are the steps"
    )
