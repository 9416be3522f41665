"""The only training step, and the methods that use a net between two steps.

A step: zero_grad -> rule.gradients -> listeners -> clip per unit -> optimizer.step -> schedule.step. Neither the
optimiser nor the clipping nor a checkpoint knows which rule wrote the gradients.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from bpfree.data import Batches
from bpfree.errors import UserError, check_positive
from bpfree.grad import first_trainable
from bpfree.inputs import Inputs
from bpfree.local.channels_last import channels_last
from bpfree.nets.acceptance import eager, materialize, refuse_meta, unwrapped
from bpfree.nets.unchanged import same_modes
from bpfree.noise import Noise
from bpfree.rule import Rule
from bpfree.rules import RULES
from bpfree.spec import Spec, build
from bpfree.training.arguments import check_optimizer, check_schedule, check_task
from bpfree.training.compute import Compute, arithmetic_of
from bpfree.training.determinism import prepare, settings
from bpfree.training.divergence import explain_first_step, find_non_finite, refuse_no_derivatives
from bpfree.training.evaluation import evaluate_split
from bpfree.training.graphs import StepGraph, allowed
from bpfree.training.mesh import Mesh, MeshSpec
from bpfree.training.places import Places
from bpfree.training.precision import Precision, resolve
from bpfree.training.progress import Progress
from bpfree.training.rehearsal import allows_channels_last
from bpfree.training.step_key import StepKey
from bpfree.training.updater import Updater
from bpfree.types import Batch, Scalars, Task


class Stepper:
    """Takes single steps of training on batches that the caller makes. `bpfree.Trainer` adds the loop over epochs.

    The arguments of the constructor are those of `bpfree.Trainer`, which describes them.

    Attributes:
        net: the net, trained in place; without the wrapper of a compiler.
        rule: the rule.
        task: the task.
        device: where the net is. Batches must be there.
        dtype: the floating type of the net's parameters.
        precision: the number type of forward passes; "auto" is resolved.
        update: "together" or "fused".
        mesh: what several processes share; see `bpfree.training.mesh`.
        deterministic: True if two runs on one device give the same bits.
        channels_last: True if images lie channels last in memory; None until `bind` decides.
        noise: the key of everything random in training.
        total_steps: steps of the whole training, for the schedule; None if unknown.
        progress: the number of steps taken, and records of epochs.
    """

    def __init__(
        self,
        net: nn.Module,
        rule: Rule | Spec,
        task: Task,
        optimizer: torch.optim.Optimizer | Spec = "adam",
        *,
        schedule: Spec = "constant",
        clip: float | None = None,
        compute: Compute | str | Mapping[str, Any] = "float32",
        seed: int = 0,
    ) -> None:
        check_task(task)
        check_optimizer(optimizer)
        check_schedule(schedule)
        compute = Compute.of(compute)
        if clip is not None:
            check_positive("clip", clip)
        refuse_meta(net)
        self._like = first_trainable(net)  # its device and dtype stand for the net's
        self.task = task
        self.rule: Rule = rule if isinstance(rule, Rule) else build(RULES, rule, section="rule", outside=Rule)
        self.net = unwrapped(net, one_backward=self.rule.one_backward)
        self.device = self._like.device
        self.dtype = self._like.dtype
        self.clip = clip
        self.precision: Precision = resolve(compute.precision, self.device, net)
        self.update = compute.update
        self.mesh = Mesh(MeshSpec.of(compute.mesh, "compute.mesh"), self.rule, self.net)
        self.deterministic = compute.deterministic
        prepare(self.deterministic, self.device)
        self._graph_wanted = allowed(compute.graph, self.device)
        self._graph: StepGraph | None = None
        self._key = StepKey(self.device)
        self.channels_last: bool | None = None
        self.noise = Noise(seed)
        self.total_steps: int | None = None
        self.progress = Progress()
        self._optimizer_spec = optimizer
        self._schedule_spec = schedule
        self._updater: Updater | None = None  # until `bind`
        self._never_finite: set[str] = set()  # tensors that `bind` found not finite, such as a mask of -inf

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimiser of net and rule.

        Raises:
            UserError: the trainer is not bound yet.
        """
        return self._after_bind("optimizer").optimizer

    @property
    def schedule(self) -> LRScheduler:
        """The schedule of the learning rate, which `step` moves on.

        Raises:
            UserError: the trainer is not bound yet.
        """
        return self._after_bind("schedule").schedule

    def _after_bind(self, attribute: str) -> Updater:
        if self._updater is None:
            raise UserError(
                f"trainer.{attribute}: it does not exist yet, because the rule does not know the shapes. Call "
                "trainer.bind(batch) first, or take a step"
            )
        return self._updater

    def bind(self, batch: Batch, total_steps: int | None = None) -> None:
        """Bind the rule to the net, and make the optimiser of both. `step` calls it; later calls do nothing.

        Args:
            batch: any batch of the training, for its shapes.
            total_steps: steps of the whole training, for the schedule. None: as `fit` counted them, or unknown.

        Raises:
            UserError: net, rule, task, optimiser and batch do not fit together.
        """
        if self._updater is not None:
            return
        self.total_steps = total_steps or self.total_steps
        refuse_no_derivatives(self.net, self.rule)
        # Lazy layers get their shapes first, because a rule reads them when it is bound. Two samples are enough.
        with explain_first_step(batch):
            materialize(self.net, batch.first(2).x, self.noise)
        # Some rules run the net when they are bound. Dropout then draws from a key, and not from the user's stream.
        with (
            same_modes(self.net),
            explain_first_step(batch),
            eager(),
            settings(self.deterministic, self.device),
            self.noise.fold("bind").global_rng(self.device),
        ):
            self.net.train()
            self.rule.bind(self.net, self.task, batch)
        self.rule.to(self.device)  # bind may have made tensors on the CPU
        self.mesh.bind(self.net, self.rule, batch)
        self._never_finite = set(find_non_finite(self.net, self.rule))
        updater = Updater(
            self.net,
            self.rule,
            self._optimizer_spec,
            self._schedule_spec,
            self.clip,
            self.update,
            self.total_steps,
            self.mesh.owned,
        )
        self.channels_last = allows_channels_last(
            self.net, self.rule, self.task, batch, self.precision, self.channels_last
        )
        if self._graph_wanted != "off":
            self._graph = StepGraph(self._take, self._places, self._key, self.device, self._graph_wanted)
            if (reason := self.mesh.not_capturable or updater.not_capturable) is not None:
                self._graph.give_up(reason)
        self._updater = updater  # last: a trainer whose bind failed is not bound

    def _places(self) -> Places:
        return Places((self.net, self.rule), self.optimizer, lambda: (self.noise, self.precision, self.clip))

    @property
    def uses_graph(self) -> bool:
        """True if a captured step was replayed; see `bpfree.training.graphs`."""
        return self._graph is not None and self._graph.used

    def compute_as(self, precision: Precision | None, channels_last: bool | None) -> None:
        """Compute as the training of a checkpoint did. Call it before `bind`.

        Args:
            precision: of that training; None to keep this trainer's.
            channels_last: of that training; None to let `bind` decide.
        """
        if precision is not None:
            self.precision = resolve(precision, self.device)
        if channels_last is not None:
            self.channels_last = channels_last

    def continue_from(self, progress: Progress) -> None:
        """Continue a training whose weights, optimiser and schedule were loaded already.

        Args:
            progress: of that training. The next step has the number `progress.step + 1`, and draws its random numbers.
        """
        self.progress = progress
        progress.sums = self.mesh.parted(progress.sums)

    def step(self, batch: Batch | tuple[Any, Any]) -> Scalars:
        """Take one step of training on one batch.

        Args:
            batch: a Batch, or a pair (x, y) of arrays or tensors, where x may be a tuple or a dict of those. x is as
                the net takes it. Several processes all pass the same whole batch.

        Returns:
            Detached 0-d tensors of the rule, among them `loss`; of several processes, each has those of its rows.

        Raises:
            UserError: the batch is not such a pair, or the first step fails.
        """
        batch = Batch.of(batch, self._like)
        # Only at first: later a user wants torch's error as it is, and a step pays nothing for the explanation.
        if self.progress.step == 0:
            with explain_first_step(batch):
                return self._step(batch)
        return self._step(batch)

    def _step(self, batch: Batch) -> Scalars:
        self.bind(batch)
        updater = self._after_bind("step")
        batch = self._batch_in_order(batch)
        for module in (self.net, self.rule):
            if not module.training:  # asked first: a walk over all modules costs a small net 7 % of its step
                module.train()
        self._key.set(self.progress.step)
        updater.prepare()
        if self._graph is None or self._gradients_are_wanted():
            scalars = self._take(batch, show=True)
        else:
            scalars = self._graph(batch)
            self._count_queries()
        updater.advance()
        self.progress.step += 1
        return scalars

    def _take(self, batch: Batch, *, show: bool = False) -> Scalars:
        """Do the part of a step that happens on the device, and with `show` what listeners do between."""
        updater = self._after_bind("step")
        updater.zero_grad()
        key = self._key.of(self.noise, self.progress.step)
        with self.arithmetic(), updater.during_gradients(), key as noise:
            scalars = self.mesh.gradients(self.rule, self.net, self.task, batch, noise)
        if show:
            self._count_queries()
            self._show_gradients(batch, scalars)
        updater.step()
        return scalars

    def _count_queries(self) -> None:
        self.progress.queries += self.rule.forward_passes(self.net, self.task)

    def _gradients_are_wanted(self) -> bool:
        """Return True if `_show_gradients` shows the gradients of this step, so that it must be taken eagerly."""
        return False

    @property
    def step_noise(self) -> Noise:
        """The key of the step that is being taken, for trackers that compute its gradients in another way."""
        return self._key.plain(self.noise, self.progress.step)

    def _show_gradients(self, batch: Batch, scalars: Scalars) -> None:
        """Do nothing; the loop over epochs shows the gradients to its listeners here."""

    def _in_order(self, x: Inputs) -> Inputs:
        return channels_last(x) if self.channels_last else x

    def _batch_in_order(self, batch: Batch) -> Batch:
        return batch._replace(x=channels_last(batch.x)) if self.channels_last else batch

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Run the block with net and rule in evaluation mode and without gradients; then restore their modes."""
        with same_modes(self.net, self.rule), torch.no_grad(), self.arithmetic():
            self.net.eval()
            self.rule.eval()
            yield

    def predict(self, x: Inputs) -> Tensor:
        """Return the rule's predictions [B, D], in evaluation mode.

        Args:
            x: samples [B, ...], as the net takes them.
        """
        with self.evaluating():
            return self.rule.predict(self.net, self._in_order(x))

    def extra_outputs(self, x: Inputs) -> dict[str, Tensor]:
        """Return other outputs [B, D] by name, to compare the predictions with; see `Rule.extra_outputs`.

        Args:
            x: samples [B, ...], as the net takes them.
        """
        with self.evaluating():
            return self.rule.extra_outputs(self.net, self._in_order(x))

    def evaluate(self, batches: Batches) -> dict[str, float]:
        """Return the metrics of a split: the task's means over all samples, and for classes those of `ClassCounts`.

        Args:
            batches: the batches of the split. Several processes share the samples, so all of them must call this.
        """
        return evaluate_split(self.task, batches.epoch(), self.mesh.shared(self.predict), self.net).metrics

    def arithmetic(self) -> AbstractContextManager[None]:
        """Return a context in which forward passes are computed as in a step; see `bpfree.training.compute`."""
        return arithmetic_of(self.rule, self.precision, self.device, self.deterministic)
