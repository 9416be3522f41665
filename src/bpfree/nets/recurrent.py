"""Recurrent nets: GRU, LSTM, and liquid (closed-form continuous-time) layers below a linear read-out.

`gru`: Cho et al. 2014, https://arxiv.org/abs/1406.1078. `lstm`: Hochreiter & Schmidhuber 1997,
https://doi.org/10.1162/neco.1997.9.8.1735. Both use torch's layers. `liquid`: Hasani et al. 2022, "Closed-form
continuous-time neural networks", https://doi.org/10.1038/s42256-022-00556-7, with the authors' package `ncps`:

    h' = s * g2(x, h) + (1 - s) * g1(x, h),    s = sigmoid(a(x, h) dt + b(x, h)),    dt = 1

with g1, g2 (behind a tanh), a and b linear in a shared layer of [x, h].

A net is a Sequential whose stages are its layers. A local rule cuts it between layers, where the features [B, T, H] are
those of all T steps. The option `detach` cuts it in time: then a layer takes its state from the step before as a
constant. The gradients of a rule pass through:

    backprop                all layers and all steps: backpropagation through time (BPTT)
    backprop, detach        all layers of one step: BPTT truncated to one step
    local rules, dfa        all steps of one layer
    the same, detach        one layer at one step: no error goes back, neither in time nor in depth
    black-box rules         nothing: these rules do not differentiate, with `detach` or without

No rule here follows how a weight acted on the state at earlier steps, as RTRL and e-prop do. With `detach` a layer
learns only the immediate effect of its weights; it cannot learn to store something for later. `detach` changes only
gradients, and not the output of the net. Derivatives in forward mode (`forward_gradient`) are not cut by it.
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
from bpfree.spec.extras import library

State = tuple[Tensor, ...]
"""The state of a layer after a step: one or more tensors, each [B, H]."""


class Rows(nn.Module):
    """A layer that reads images [B, C, H, W] as sequences of rows [B, H, C*W]; sequences [B, T, F] stay as they are."""

    def forward(self, x: Tensor) -> Tensor:
        """Return sequences [B, T, F]."""
        return x.transpose(1, 2).flatten(2) if x.dim() == 4 else x  # [B, C, H, W] -> [B, H, C*W]


class LastStep(nn.Module):
    """A layer that keeps only the features of the last step."""

    def forward(self, h: Tensor) -> Tensor:
        """Return the last step [B, H] of features h [B, T, H]."""
        return h[:, -1]


class RecurrentLayer(nn.Module):
    """A recurrent layer, which can run over a whole sequence or take a single step.

    Args:
        hidden: H.
        detach: True if each step takes the state before it as a constant, so that no error goes back in time.
    """

    def __init__(self, hidden: int, detach: bool) -> None:
        super().__init__()
        self.hidden = hidden
        self.detach = detach

    @abstractmethod
    def step(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Take one step of the layer.

        Args:
            x: the values of this step, [B, F].
            state: the state before it; None for zeros.

        Returns:
            The features [B, H] and the state after the step.
        """

    def over_time(self, x: Tensor) -> Tensor:
        """Return the features [B, T, H] of sequences x [B, T, F], computed step by step."""
        state, features = None, []
        for x_t in x.unbind(1):
            h, state = self.step(x_t, state)
            features.append(h)
        return torch.stack(features, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features [B, T, H] of sequences x [B, T, F]."""
        # `detach` changes only gradients. Without gradients the plain way gives the same numbers in less time.
        if not (self.detach and torch.is_grad_enabled()):
            return self.over_time(x)
        # The first pass, without gradients, computes the states; the second one computes the gradients. Together they
        # are faster than T small steps with autograd.
        # With all states as constants the steps are independent, so they run as one batch of B T samples.
        h, _ = self.step(x.flatten(0, 1), self._states_before(x))
        return h.view(*x.shape[:2], -1)

    @torch.no_grad()
    def _states_before(self, x: Tensor) -> State:
        """The states before each step, each tensor [B*T, H]."""
        # This step only tells the number and the shapes of the tensors in a state, which the layer alone knows.
        _, state = self.step(x[:, 0], None)
        before = [tuple(torch.zeros_like(part) for part in state)]
        # No step needs the state after the last one.
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
        """Return the features [B, T, H] by one call of torch's layer, which is faster than single steps."""
        h: Tensor = self.rnn(x)[0]
        return h

    def step(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Take one step; see `RecurrentLayer`."""
        # torch's layer takes a sequence [B, 1, F] and states [layers, B, H], here of one step and one layer.
        _, h = self.rnn(x.unsqueeze(1), None if state is None else state[0].unsqueeze(0))
        return h[0], (h[0],)


class LSTMLayer(RecurrentLayer):
    """A layer of long short-term memory. Its state is the features [B, H] and the cells [B, H].

    Args:
        features: F of the input.
        hidden: H.
        detach: see RecurrentLayer.
    """

    def __init__(self, features: int, hidden: int, detach: bool) -> None:
        super().__init__(hidden, detach)
        self.rnn = nn.LSTM(features, hidden, batch_first=True)

    def over_time(self, x: Tensor) -> Tensor:
        """Return the features [B, T, H] by one call of torch's layer, which is faster than single steps."""
        h: Tensor = self.rnn(x)[0]
        return h

    def step(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Take one step; see `RecurrentLayer`."""
        before = None if state is None else (state[0].unsqueeze(0), state[1].unsqueeze(0))
        _, (h, c) = self.rnn(x.unsqueeze(1), before)
        return h[0], (h[0], c[0])


class LiquidLayer(RecurrentLayer):
    """A layer of closed-form continuous-time (CfC) neurons, with the equation at the top of this file.

    Args:
        features: F of the input.
        hidden: H.
        detach: see RecurrentLayer.
        backbone: the width of the layer that g1, g2, a and b share.

    Raises:
        UserError: the package ncps is not installed.
    """

    def __init__(self, features: int, hidden: int, detach: bool, *, backbone: int) -> None:
        super().__init__(hidden, detach)
        self.cell = library("ncps.torch", "liquid", "net liquid").CfCCell(features, hidden, backbone_units=backbone)

    def step(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Take one step; see `RecurrentLayer`."""
        h = x.new_zeros(x.shape[0], self.hidden) if state is None else state[0]
        # The last argument is dt. Steps of all samples have equal length here.
        h, _ = self.cell(x, h, 1.0)
        return h, (h,)


class Recurrent(nn.Sequential):
    """A net of recurrent layers and a linear read-out of each step or of the last step.

    Args:
        in_shape: shape of one sample: [steps, values], or [channels, height, width] of an image, which is read row by
            row.
        out_features: D.
        make: a function (features, hidden, detach) -> layer.
        hidden: H of each layer.
        detach: true if no error shall go back in time; see `RecurrentLayer`.
        each_step: true for an output at each step, [B, T, D], which the task `sequence` needs; false for one output
            after the last step, [B, D].
        vocabulary: V, if samples are tokens [T], whole numbers below V. A table turns each into as many values as the
            first layer has. Default: samples are values.

    Raises:
        UserError: `hidden` is empty, or the samples are not sequences, images or tokens.
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
        vocabulary: int | None = None,
    ) -> None:
        for width in hidden:
            check_positive("net.hidden", width)
        if not hidden:
            raise UserError("net.hidden: found none, allowed: the width of at least one layer")
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if vocabulary is None:
            first, layers["rows"] = _features(in_shape), Rows()
        else:
            first, layers["embed"] = hidden[0], _table(in_shape, vocabulary, hidden[0])
        for i, (features, width) in enumerate(pairwise([first, *hidden]), start=1):
            layers[f"rnn{i}"] = make(features, width, detach)
        if not each_step:
            layers["last"] = LastStep()
        layers["fc"] = nn.Linear(hidden[-1], out_features)
        super().__init__(layers)

    def step(self, x: Tensor, state: tuple[State, ...] | None) -> tuple[Tensor, tuple[State, ...]]:
        """Take one step of the whole net.

        After T such steps the output is the same as that of the net for all T steps. The time of a step does not grow
        with T.

        Args:
            x: the values of this step, [B, F], or its tokens, int64 [B].
            state: the states of the layers before it; None for zeros.

        Returns:
            The output [B, D] and the states after the step.
        """
        states: list[State] = []
        # `rows` and `last` only change the dimension of time, and a single step does not have it.
        layers = [layer for layer in self if isinstance(layer, RecurrentLayer)]
        if "embed" in self._modules:
            x = self.get_submodule("embed")(x)
        for i, layer in enumerate(layers):
            x, after = layer.step(x, None if state is None else state[i])
            states.append(after)
        out: Tensor = self.get_submodule("fc")(x)
        return out, tuple(states)


class RecurrentOptions(TypedDict, total=False):
    """The options of every recurrent net; see `Recurrent` for the meaning and the defaults."""

    hidden: Sequence[int]
    detach: bool
    each_step: bool
    vocabulary: int | None


def gru(in_shape: int | Sequence[int], out_features: int, **options: Unpack[RecurrentOptions]) -> Recurrent:
    """Return a net of gated recurrent units; see `Recurrent` for the arguments."""
    return Recurrent(_shape(in_shape), out_features, GRULayer, **options)


def lstm(in_shape: int | Sequence[int], out_features: int, **options: Unpack[RecurrentOptions]) -> Recurrent:
    """Return a net of long short-term memory layers; see `Recurrent` for the arguments."""
    return Recurrent(_shape(in_shape), out_features, LSTMLayer, **options)


def liquid(
    in_shape: int | Sequence[int], out_features: int, *, backbone: int = 64, **options: Unpack[RecurrentOptions]
) -> Recurrent:
    """Return a net of closed-form continuous-time (CfC) neurons. It needs the package ncps.

    Args:
        in_shape: [steps, values] or [channels, height, width] of one sample.
        out_features: D.
        backbone: the width of the layer that the four maps of a CfC layer share.
        options: see `Recurrent`.
    """
    check_positive("net.backbone", backbone)
    return Recurrent(_shape(in_shape), out_features, partial(LiquidLayer, backbone=backbone), **options)


def _shape(in_shape: int | Sequence[int]) -> tuple[int, ...]:
    return (in_shape,) if isinstance(in_shape, int) else tuple(in_shape)


def _table(in_shape: Sequence[int], vocabulary: int, width: int) -> nn.Embedding:
    """Return the table of the tokens, [V, E]."""
    check_positive("net.vocabulary", vocabulary)
    if len(in_shape) != 1:
        raise UserError(
            f"net.vocabulary: found {vocabulary} with samples of shape {list(in_shape)}, allowed: tokens [steps]. "
            "Leave it out for samples that are values"
        )
    return nn.Embedding(vocabulary, width)


def _features(in_shape: Sequence[int]) -> int:
    """The number of values of a step, F."""
    if len(in_shape) == 2:
        return in_shape[1]
    if len(in_shape) == 3:
        return in_shape[0] * in_shape[2]
    raise UserError(
        f"net: found samples of shape {list(in_shape)}, allowed in a recurrent net: [steps, values], or images "
        "[channels, height, width], whose rows are the steps; or with net.vocabulary tokens [steps]"
    )
