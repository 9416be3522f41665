"""The base class of every learning rule. A learning rule is a way to write `.grad`; everything else is shared.

Rules of one kind share more: `LocalRule` (bpfree.local), `BlackBoxRule` (bpfree.population) and `DiffusionRule`
(bpfree.diffusion) derive from `Rule`. docs/new_rule.md shows how to write a rule of each kind.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor, nn

from bpfree.errors import UserError
from bpfree.grad import trainable
from bpfree.inputs import Inputs, forward
from bpfree.mesh import Lane, Part
from bpfree.nets.acceptance import materialize, refuse_meta, refuse_wrapped
from bpfree.noise import Noise
from bpfree.spec import Checked, Described
from bpfree.tasks.abilities import check_able
from bpfree.types import ALL_TASKS, Batch, Epochs, Scalars, Task

Through = Literal["nothing", "part", "net"]
Transports = Literal["none", "signs", "initial", "weights"]
Memory = Literal["flat", "grows"]


class Locality(NamedTuple):
    """The properties that separate a rule from backprop. A rule declares them and `bpfree.certify` measures them.

    Each property has the worst value that can occur. The defaults are those of backprop, so a rule that declares
    nothing promises nothing.

    Attributes:
        through: the largest piece that one objective is differentiated through: "nothing", a "part", or the "net".
        waits: True if a part cannot learn before later parts have run; waiting for the output's error is an example.
        transports: what the way back from a later part reads of a forward weight: "none" of it, its "signs", its
            "initial" value when the rule was bound, or the "weights" themselves.
        memory: "grows" if more parts mean more activations in memory at the same time, else "flat".
    """

    through: Through = "net"
    waits: bool = True
    transports: Transports = "weights"
    memory: Memory = "grows"

    def worse_than(self, other: "Locality") -> list[str]:
        """Return the names of the properties in which this locality is worse than another.

        Args:
            other: the locality to compare with.

        >>> Locality(through="part").worse_than(Locality(through="nothing", waits=False))
        ['through', 'waits']
        """
        pairs = zip(self._fields, self, other, strict=True)
        return [name for name, mine, theirs in pairs if _rank(mine) > _rank(theirs)]


BLACK_BOX = Locality(through="nothing", transports="none", memory="flat")
"""The locality of a rule that differentiates nothing. It waits: a member has no score before the output exists."""

LOCAL = Locality(through="part", waits=False, transports="none", memory="flat")
"""The locality of a rule whose parts learn while the forward pass goes by."""

# One list for all four properties, from good to bad. Values of different properties are never compared with each other.
_ORDER: tuple[object, ...] = (
    *(False, "nothing", "none", "flat", "part", "signs", "initial"),
    *(True, "net", "weights", "grows"),
)


class Flops(NamedTuple):
    """The floating-point operations of a training step, forward and backward.

    Attributes:
        net: those of the net.
        heads: those that the rule's losses of hidden segments add.
    """

    net: float
    heads: float


def _rank(value: object) -> int:
    return _ORDER.index(value)


class Rule(Checked, Described, nn.Module, ABC):
    """The base class of a learning rule.

    A subclass defines `gradients`. Everything else has a default. A rule is an `nn.Module`: a feedback matrix that is
    a buffer, or a head that is a submodule, moves to the device, is saved and is loaded without further code.

    Attributes:
        tasks: names in `bpfree.tasks.TASKS` that the rule can do. Other tasks are refused. Default: all.
        takes_soft_labels: True if the rule reads y by `task.target` and `task.loss` alone, as mixup needs.
        uses_loss: True if every unit learns by `task.loss`. If not, class weights and custom losses are refused.
        needs_derivatives: True if the rule differentiates the net, or parts of it.
        needs_net: the only name in `bpfree.nets.NETS` that the rule can train. Default: None, any net.
        also_takes: further names in NETS that a rule with `needs_net` can train, for other tasks.
        one_backward: True if all gradients come from backward passes through net(x). DistributedDataParallel needs it.
        looks_inside: True if the rule hooks modules, so that a compiled net must run as it was written.
        mean_over_samples: True if the gradient of a batch is the mean of the gradients of its samples. False where
            samples are compared with each other, where noise is drawn for a batch, or where scores are ranked. The
            shared tests read this attribute and the next two.
        trains_every_parameter: True if every trainable parameter of the net and of the rule gets a gradient.
        draws_in_memory_order: True if random numbers are laid over a weight in its order in memory, so that a
            channels-last net gets other numbers at the same places.
        mesh_modes: what several processes can split: "data", "blocks" or "population"; see `bpfree.training.mesh`. The
            first one is the default.
        lane: the parts of this process, if several processes train different parts; set while gradients are computed.
    """

    tasks: ClassVar[tuple[str, ...]] = ALL_TASKS
    takes_soft_labels: ClassVar[bool] = False
    uses_loss: ClassVar[bool] = True
    needs_derivatives: ClassVar[bool] = True
    needs_net: ClassVar[str | None] = None
    also_takes: ClassVar[tuple[str, ...]] = ()
    one_backward: ClassVar[bool] = False
    looks_inside: ClassVar[bool] = True
    mean_over_samples: ClassVar[bool] = True
    trains_every_parameter: ClassVar[bool] = True
    draws_in_memory_order: ClassVar[bool] = False
    mesh_modes: ClassVar[tuple[str, ...]] = ("data",)
    lane: Lane | None = None

    def bind(self, net: nn.Module, task: Task, batch: Batch) -> None:
        """Learn the shapes from a first batch: make buffers and heads, refuse what cannot work.

        A subclass that overrides `bind` calls `super().bind(net, task, batch)` first, and says by `is_bound` when it is
        ready.

        Args:
            net: the net to train; lazy modules get their shapes here.
            task: gives the width of the output, the target and the loss.
            batch: samples x [B, ...] and targets y, on the device of the net.

        Raises:
            UserError: the rule cannot train this net or this task.
        """
        refuse_meta(net)
        materialize(net, batch.first(2).x)
        if not self.one_backward:
            refuse_wrapped(net, type(self).__name__)
        check_able(self, task, batch)

    @property
    def is_bound(self) -> bool:
        """True if the rule has everything from `bind` that `gradients` needs. Default: it needs nothing."""
        return True

    def refuse_unbound(self) -> None:
        """Raise UserError if `bind` must run before `gradients`. A rule calls it at the start of `gradients`."""
        if not self.is_bound:
            raise UserError(f"{type(self).__name__}: not bound to a net. Call rule.bind(net, task, batch) first")

    def begin(self, data: Epochs, *, steps: int, resumed: bool) -> None:
        """Look at the training data once, after `bind` and before the first step; default: do nothing.

        `Trainer.fit` calls it. It is for rules that compute something from all samples.

        Args:
            data: the batches of training.
            steps: number of steps of the whole training.
            resumed: True if a checkpoint has already given the rule its state.
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

    def forward_passes(self, net: nn.Module, task: Task) -> float:
        """Return how many forward passes of the minibatch through the net one training step takes; default: 1.

        `queries` in result.json is the sum over all steps. A pass of twice as many samples counts as two, and of a part
        of the minibatch as that part. A pass that ends before the output counts as a whole one. In a net of blocks
        whose rule runs them one by one, a pass is one run of each block. Not counted are passes before the first step
        (`bind`, `begin`, the choice of an evaluator), and what activation checkpointing computes a second time.

        Args:
            net: the net that the rule is bound to.
            task: the task of the training.
        """
        return 1

    def flops(self, net: nn.Module, task: Task, batch: Batch, noise: Noise) -> Flops | None:
        """Return the operations of a step, if the rule has heads; default: None. Gradients are added, as in a step.

        Args:
            net: the net that the rule is bound to, in training mode.
            task: gives target and loss.
            batch: x [B, ...], y [B].
            noise: the key of the step.
        """
        return None

    def predict(self, net: nn.Module, x: Inputs) -> Tensor:
        """Return the output of the trained net. A rule that reads predictions elsewhere overrides it.

        Args:
            net: the trained net, in evaluation mode.
            x: samples [B, ...], as `bpfree.inputs.forward` takes them.

        Returns:
            The output [B, D].
        """
        return forward(net, x)

    def extra_outputs(self, net: nn.Module, x: Inputs) -> dict[str, Tensor]:
        """Return further outputs [B, D] by name, which are judged beside that of `predict`; default: none.

        Args:
            net: the trained net, in evaluation mode.
            x: samples [B, ...].
        """
        return {}

    @property
    def predicts_with_net(self) -> bool:
        """True if `predict` returns net(x), so that the rule's gradient can be compared with backprop's."""
        return type(self).predict is Rule.predict

    def refuse_mesh(self, mode: str, net: nn.Module) -> None:
        """Raise UserError if several processes cannot split the work of the rule in a way.

        Args:
            mode: "data", "blocks" or "population".
            net: the net that the rule is bound to.
        """
        if mode not in self.mesh_modes:
            raise UserError(
                f"mesh: found '{mode}', but {type(self).__name__} cannot be split so. Allowed: "
                f"{', '.join(self.mesh_modes)}"
            )

    def parts(self, net: nn.Module, batch: Batch) -> list[Part]:
        """Return the parts that processes can train apart, in the order in which they run; for "blocks".

        Args:
            net: the net that the rule is bound to.
            batch: samples, for their shapes.
        """
        raise NotImplementedError(f"{type(self).__name__} has 'blocks' in its mesh_modes, and no parts")

    def passes_features(self, net: nn.Module) -> bool:
        """Return True if parts in several processes send features to each other; default: True.

        Args:
            net: the net that the rule is bound to.
        """
        return True

    def metadata(self) -> dict[str, str]:
        """Return what the rule chose by itself, such as its taps, for result.json; default: nothing."""
        return {}

    def feedback_paths(self, net: nn.Module, noise: Noise) -> dict[str, tuple[Tensor, Tensor]]:
        """Return, by layer, its weight and the feedback that replaces it on the way back; default: none.

        The `weight_alignment` tracker shows the angle between the two.

        Args:
            net: the net that the rule is bound to.
            noise: the key of the step.

        Returns:
            By the name of the layer, two tensors of one shape.
        """
        return {}

    def locality(self) -> Locality:
        """Declare how local the rule is, which `bpfree.certify` measures; default: no more than backprop."""
        return Locality() if self.needs_derivatives else BLACK_BOX

    def units(self, net: nn.Module) -> list[list[nn.Parameter]]:
        """Return the parts that train independently of each other; default: one part.

        Gradients are clipped part by part, and parts may live in different processes. No parameter is in two parts, and
        a parameter that never gets a gradient is in none.

        Args:
            net: the net that the rule is bound to.
        """
        return [trainable(net, self)]

    def optimizer_groups(self, net: nn.Module) -> list[dict[str, Any]]:
        """Return all trainable parameters as parameter groups of a torch optimiser; default: one group.

        Args:
            net: the net that the rule is bound to.

        Returns:
            Groups with `params`, and with those options that differ from the optimiser's, such as `weight_decay`.
        """
        return [{"params": trainable(net, self)}]
