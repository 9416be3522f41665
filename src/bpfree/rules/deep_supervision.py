"""Deep supervision: backprop of a local rule's losses, all together and through the whole net.

Lee, Xie, Gallagher, Zhang, Tu 2015, "Deeply-Supervised Nets", https://arxiv.org/abs/1409.5185

    minimise  w loss(out, y) + sum_l loss_l(h_l),    loss_l the loss that the local rule has for segment l

The rule is a control, and not a local rule. It has the heads, the losses and the signals of the local rule, and differs
from it in one thing: the graph is not cut, so the loss of a segment also teaches all segments before it. What it gains
over backprop, the heads give; what it gains over the local rule, the way back through the net gives.

w is 1, unless the local rule weighs the output's loss itself, as predsim does.

Where we differ: the paper's heads are squared hinge losses with a weight that falls to 0 while the net trains. Here
heads, losses and weights are those of the local rule, and the weights stay. The net is read as the local rule reads it.
"""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from bpfree.errors import UserError
from bpfree.inputs import Inputs
from bpfree.local.operations import flops_of_step
from bpfree.local.rule import LocalRule
from bpfree.noise import Noise
from bpfree.rule import Flops, Rule
from bpfree.spec import Spec, build
from bpfree.types import Batch, Epochs, Scalars, Task


class DeepSupervision(Rule):
    """Backprop of the sum of a local rule's losses and the task's.

    Args:
        rule: the local rule, a name or `{name: mono_forward, read: sum}`. It needs read-outs: `mono_forward`, `local`,
            `pred`, `sim`, `predsim`, `cwcomp`, `deeper_forward`, `hff`, or a rule of your own with `has_heads`.

    Attributes:
        table: the rules that a name can mean. `bpfree.rules` fills it in, since a rule's file cannot import the table
            that imports the file.

    Raises:
        UserError: the rule does not have read-outs.
    """

    table: ClassVar[Mapping[str, type[Rule]]] = {}
    takes_soft_labels: ClassVar[bool] = True

    def __init__(self, *, rule: LocalRule | Spec = "mono_forward") -> None:
        super().__init__()
        able = {name: kind for name, kind in self.table.items() if getattr(kind, "has_heads", False)}
        self.rule: LocalRule = (
            rule if isinstance(rule, LocalRule) else build(able, rule, section="rule.rule", outside=LocalRule)
        )
        if not self.rule.has_heads or self.rule.needs_error:
            raise UserError(
                f"rule.rule: found {type(self.rule).__name__}, whose segments do not learn from targets by read-outs, "
                f"allowed: {', '.join(able)}, or a rule of your own that says `has_heads = True`"
            )

    def bind(self, net: nn.Module, task: Task, batch: Batch) -> None:
        """Let the local rule find the segments and make its heads.

        Raises:
            UserError: the local rule cannot train this net or this task.
        """
        self.rule.bind(net, task, batch)

    @property
    def is_bound(self) -> bool:
        """True if the local rule is bound."""
        return self.rule.is_bound

    def begin(self, data: Epochs, *, steps: int, resumed: bool) -> None:
        """Let the local rule look at the training data."""
        self.rule.begin(data, steps=steps, resumed=resumed)

    def gradients(self, net: nn.Module, task: Task, batch: Batch, noise: Noise) -> Scalars:
        """Add the gradient of the sum of all losses, by one backward pass through the whole net."""
        self.refuse_unbound()
        return self.rule.gradients_end_to_end(net, task, batch, noise)

    def flops(self, net: nn.Module, task: Task, batch: Batch, noise: Noise) -> Flops | None:
        """Return the operations of a step without cuts; see `Rule.flops`."""
        return flops_of_step(self.rule, net, task, batch, noise, end_to_end=True)

    def predict(self, net: nn.Module, x: Inputs) -> Tensor:
        """Return the scores [B, D] that the local rule reads."""
        return self.rule.predict(net, x)

    def extra_outputs(self, net: nn.Module, x: Inputs) -> dict[str, Tensor]:
        """Return the further outputs of the local rule."""
        return self.rule.extra_outputs(net, x)

    @property
    def predicts_with_net(self) -> bool:
        """True if the local rule predicts with the output of the net."""
        return self.rule.predicts_with_net

    def metadata(self) -> dict[str, str]:
        """Return the taps, if the local rule chose them by itself."""
        return self.rule.metadata()
