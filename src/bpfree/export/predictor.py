"""A trained run as one `nn.Module`: raw samples in, probabilities or decoded numbers out."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bpfree.data import Preprocess
from bpfree.errors import UserError
from bpfree.export.bare_net import forget
from bpfree.export.scale import scales_of
from bpfree.inputs import Inputs
from bpfree.local.channels_last import channels_last
from bpfree.rule import Rule
from bpfree.rules.backprop import Backprop
from bpfree.tasks import DataTask
from bpfree.training.compute import arithmetic_of
from bpfree.training.trainer import Trainer

OUTPUTS = {"reconstruct": "rebuilt", "regress": "values", "sequence": "values"}
"""What a module of a task without classes returns; with classes it returns "probabilities"."""


class Predictor(nn.Module):
    """A trained net with everything before and behind it: preprocessing, the rule's inference, and decoding.

    It holds copies, so that the run can go on with its training. It is always in evaluation mode and keeps no graph, so
    it cannot be trained. `to` moves it, and `state_dict` holds all its numbers.

    Args:
        trainer: its net, rule and task are copied.
        preprocess: how raw samples become the input of the net.

    Attributes:
        net: the copy of the net.
        rule: the copy of the rule that predicts. If the rule predicts by net(x), there is a rule without weights in its
            place.
        task: decodes the output of the rule.
        scales: the preprocessing of each input, by its name.
        named: True if inputs are passed by their names.
        output: what `forward` returns: "probabilities", "values" or "rebuilt".
    """

    def __init__(self, trainer: Trainer, preprocess: Preprocess) -> None:
        super().__init__()
        assert isinstance(trainer.task, DataTask)
        self.task = copy.copy(trainer.task)
        self.task.use_loss(None)
        self.output = "probabilities" if self.task.classes is not None else OUTPUTS[self.task.name]
        self.net = forget(copy.deepcopy(trainer.net))
        self.rule = Backprop() if trainer.rule.predicts_with_net else _without_training(trainer.rule)
        scales = scales_of(preprocess.scaling, trainer.dtype)
        self.names = tuple(scales)
        # A list and not a ModuleDict, which refuses names such as "keys" and names with a point.
        self.scales = nn.ModuleList(scales.values())
        # Names that are digits stand for a tuple.
        self.named = bool(preprocess.inputs) and not self.names[0].isdigit()
        self._precision = trainer.precision
        self._deterministic = trainer.deterministic
        self._channels_last = bool(trainer.channels_last)
        self.to(trainer.device)
        # Parameters keep their requires_grad: torch's recurrent layers round in another way without it.
        self.eval()

    def extra_repr(self) -> str:
        """Return the names of the inputs and of the output, for `repr`."""
        return f"{', '.join(self.names)} -> {self.output}"

    def train(self, mode: bool = True) -> "Predictor":
        """Stay in evaluation mode, whatever the mode of the module around it.

        Args:
            mode: not used.
        """
        return super().train(False)

    @torch.no_grad()
    def forward(self, *x: Any, **named: Tensor) -> Tensor:
        """Return what the run predicts for raw samples, as `Run.predict_proba` and `Run.predict` do.

        Up to 500 samples, which a run computes at once, the numbers are the same to the bit.

        Args:
            x: raw samples [B, ...] on the device of the module. Several inputs are several arguments, or a tuple.
            named: several inputs by their names, if training had names. A dict as the only argument is allowed, too.

        Returns:
            With classes the probabilities, [B, C] or [B, C, H, W]; else numbers in the units of the labels, or rebuilt
            samples.

        Raises:
            UserError: there are more or fewer inputs than in training, or samples of another shape.
        """
        tensors = self._tensors(x, named)
        device = next(self.net.parameters()).device
        with arithmetic_of(self.rule, self._precision, device, self._deterministic):
            return self.answer(tensors, in_order=self._channels_last)

    def answer(self, tensors: tuple[Tensor, ...], *, in_order: bool = False) -> Tensor:
        """Return what `forward` returns, without its settings of torch; torch.export traces this method.

        Args:
            tensors: the raw inputs in the order of `names`.
            in_order: True to put images in channels-last order first.
        """
        dtype = next((p.dtype for p in self.net.parameters() if p.is_floating_point()), torch.float32)
        scaled = [scale(x, dtype) for scale, x in zip(self.scales, tensors, strict=True)]
        x: Inputs = scaled[0] if self.names == ("input",) else tuple(scaled)
        if self.named:
            x = dict(zip(self.names, scaled, strict=True))
        out = self.rule.predict(self.net, channels_last(x) if in_order else x).float()  # as Run.scores does
        return self.task.decode(out) if self.task.classes is None else self.task.probabilities(out)

    def _tensors(self, x: tuple[Any, ...], named: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Return the inputs in the order of `names`, whichever way they were passed."""
        only = x[0] if len(x) == 1 and not named else None
        if isinstance(only, Mapping):
            return self._tensors((), only)
        if isinstance(only, tuple | list):
            x = tuple(only)
        if self.named and not x and named.keys() == set(self.names):
            return tuple(named[name] for name in self.names)
        if named or self.named or len(x) != len(self.names):
            allowed = ", ".join(self.names) + " by name" if self.named else f"{len(self.names)} of them"
            found = ", ".join(named) if named else len(x)
            raise UserError(f"samples: found the inputs {found}, allowed: {allowed}, as in training")
        return x


def _without_training(rule: Rule) -> Rule:
    """Return a copy of a rule without what only its training needs: the optimiser, and other processes."""
    # A shallow copy first: what these names lead to must not be copied.
    shallow = copy.copy(rule)
    for name in ("segment_done", "lane"):
        if name in vars(shallow):
            setattr(shallow, name, None)
    return copy.deepcopy(shallow)
