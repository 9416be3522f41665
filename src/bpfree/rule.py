"""What a learning rule is: a way to write `.grad`. Three shapes of rule cover the field."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor, nn

from bpfree.grad import trainable
from bpfree.inputs import Inputs, forward
from bpfree.nets.acceptance import materialize, refuse_meta, refuse_wrapped
from bpfree.noise import Noise
from bpfree.spec import Checked
from bpfree.tasks.abilities import check_able
from bpfree.types import ALL_TASKS, Batch, Epochs, Scalars, Task

Through = Literal["nothing", "part", "net"]
Transports = Literal["none", "signs", "weights"]
Memory = Literal["flat", "grows"]


class Locality(NamedTuple):
    """Properties of a rule, each at its worst; the defaults are backprop's, so who says nothing promises nothing.

    Attributes:
        through: what a single objective is differentiated through at most: "nothing", a "part", or the "net".
        waits: whether a part waits for what comes after it, such as the output's error, before it can learn.
        transports: what of a forward weight the way back from a later part reads: "none" of it, "signs", or "weights".
        memory: whether the activations that are held at once grow with the number of parts, or stay "flat".
    """

    through: Through = "net"
    waits: bool = True
    transports: Transports = "weights"
    memory: Memory = "grows"

    def worse_than(self, other: "Locality") -> list[str]:
        """Names of the properties in which this one is worse.

        >>> Locality(through="part").worse_than(Locality(through="nothing", waits=False))
        ['through', 'waits']
        """
        return [name for name, found, said in zip(self._fields, self, other, strict=True) if _rank(found) > _rank(said)]


BLACK_BOX = Locality(through="nothing", transports="none", memory="flat")
"""Of a rule that differentiates nothing. It waits: a member has no score before the output is there."""

LOCAL = Locality(through="part", waits=False, transports="none", memory="flat")
"""Of parts that learn while the forward pass goes by."""

_ORDER: tuple[object, ...] = (False, "nothing", "none", "flat", "part", "signs", True, "net", "weights", "grows")


def _rank(value: object) -> int:
    return _ORDER.index(value)


class Rule(Checked, nn.Module, ABC):
    """A learning rule. A Module, so that its feedback matrices and heads move, save and train by themselves."""

    tasks: ClassVar[tuple[str, ...]] = ALL_TASKS  # those of `bpfree.tasks.TASKS` that it can do; others are refused
    takes_soft_labels: ClassVar[bool] = False  # does it read y by task.target and task.loss alone, as mixup needs?
    uses_loss: ClassVar[bool] = True  # does each of its units learn by task.loss? If not, class weights are refused
    needs_derivatives: ClassVar[bool] = True  # does it differentiate the net, or parts of it?
    needs_net: ClassVar[str | None] = None  # the only one of NETS that it can train, if it takes no other
    one_backward: ClassVar[bool] = False  # do all gradients come from backward passes through net(x)? DDP needs it
    looks_inside: ClassVar[bool] = True  # does it see modules run, so that a compiled net must run as it was written?

    def bind(self, net: nn.Module, task: Task, batch: Batch) -> None:
        """Learn the shapes from a first batch: make buffers and heads, refuse what cannot work.

        Raises:
            UserError: the rule cannot train this net or this task.
        """
        refuse_meta(net)
        materialize(net, batch.first(2).x)
        if not self.one_backward:
            refuse_wrapped(net, type(self).__name__)
        check_able(self, task, batch)

    def begin(self, data: Epochs, *, steps: int, resumed: bool) -> None:
        """Told by `Trainer.fit` what it will train on, after `bind`; for rules that start from all samples.

        Args:
            data: the batches of training.
            steps: of the whole training.
            resumed: the rule has its state from a checkpoint.
        """

    @abstractmethod
    def gradients(self, net: nn.Module, task: Task, batch: Batch, noise: Noise) -> Scalars:
        """ADD this batch's gradients to `.grad` of the net and of the rule itself.

        Args:
            net: the net, in training mode.
            task: gives target and loss.
            batch: x [B, ...], y [B].
            noise: the key of this step; every random number comes from it.

        Returns:
            Detached scalars; among them `loss`, and `loss/<unit>` where units have losses of their own.
        """

    def predict(self, net: nn.Module, x: Inputs) -> Tensor:
        """Output of the trained net, [B, D]. Rules that do not read the net's own output override it."""
        return forward(net, x)

    def extra_outputs(self, net: nn.Module, x: Inputs) -> dict[str, Tensor]:
        """By name, other outputs [B, D] that belong beside `predict`'s when a run is judged; default: none."""
        return {}

    @property
    def predicts_with_net(self) -> bool:
        """Whether a prediction is net(x), so that backprop of the task's loss is what the rule stands beside."""
        return type(self).predict is Rule.predict

    def metadata(self) -> dict[str, str]:
        """What the rule settled on by itself, for result.json; default: nothing."""
        return {}

    def feedback_paths(self, net: nn.Module, noise: Noise) -> dict[str, tuple[Tensor, Tensor]]:
        """By layer, its weight and the feedback that stands for it on the way back, of one shape; default: none.

        Args:
            net: the net that the rule is bound to.
            noise: the key of the step.
        """
        return {}

    def locality(self) -> Locality:
        """What the rule says of itself, and `bpfree.certify` measures; default: what holds for backprop."""
        return Locality() if self.needs_derivatives else BLACK_BOX

    def units(self, net: nn.Module) -> list[list[nn.Parameter]]:
        """Parts that train independently of each other: clipped apart, and free to live in other processes."""
        return [trainable(net, self)]

    def optimizer_groups(self, net: nn.Module) -> list[dict[str, Any]]:
        """All trainable parameters as groups of a torch optimiser, with what is to be another in each; default: one."""
        return [{"params": trainable(net, self)}]
