"""The only training loop.

One step: zero_grad -> rule.gradients -> trackers -> clip per unit -> optimizer.step -> schedule.step. Neither the
optimiser nor the clipping nor a checkpoint knows which rule wrote the gradients.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from bpfree.data import Batches
from bpfree.errors import DivergedError, UserError, check_choice, check_positive
from bpfree.grad import first_trainable, trainable
from bpfree.inputs import Inputs
from bpfree.local.channels_last import channels_last, keep_gradients_in_order
from bpfree.local.fused_update import FusedUpdate
from bpfree.memory import peak_step_memory
from bpfree.nets.acceptance import eager, materialize, refuse_meta, unwrapped
from bpfree.nets.unchanged import same_modes, unchanged_buffers
from bpfree.noise import Noise
from bpfree.rule import Rule
from bpfree.rules import RULES
from bpfree.spec import Spec, build
from bpfree.trackers import Record, Tracker
from bpfree.training.divergence import diverged, explained, find_non_finite, refuse_no_derivatives, values_of
from bpfree.training.evaluation import judge
from bpfree.training.interrupt import interrupt_between_steps
from bpfree.training.optim import add_groups, make_optimizer, make_schedule
from bpfree.training.precision import Precision, arithmetic, resolve
from bpfree.training.progress import EarlyStopping, Progress
from bpfree.training.rehearsal import allows_channels_last
from bpfree.types import Batch, Scalars, Task

Update = Literal["together", "fused"]

_CHECK_EVERY = 20  # steps between two looks at the losses; each look waits for the device


class Trainer:
    """Trains a net by a rule. For those who own their loop, `step` is all there is to call.

    Args:
        net: any module; it is trained in place. `torch.compile(net)` is trained as it was written, without the
            compiler; `DistributedDataParallel` works with rules that have `one_backward`.
        rule: a name, a spec, or a Rule.
        task: see `bpfree.tasks`.
        optimizer: a name or a spec (`{"name": "sgd", "lr": 0.1}`), or an optimiser made for the net's parameters, to
            which those of the rule are added.
        schedule: a name or a spec; stepped at every step.
        clip: largest gradient norm, for each of the rule's units by itself.
        precision: "bfloat16" runs forward passes under autocast; parameters stay as they are. "float32" may take
            another library for matrix products where it is as accurate and faster (`bpfree.training.precision`);
            "float32_torch" leaves that to torch. "auto" is bfloat16 where the device multiplies it in hardware, else
            float32; the attribute `precision` says which.
        update: "together" steps all parameters when every gradient is there; "fused" steps a segment's as soon as its
            own are, and frees them: the same weights, with the gradients of one segment at a time in memory. For local
            rules.
        seed: of everything random in training.
        total_steps: length of the schedule; `fit` knows it by itself.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        >>> from bpfree.tasks import Classify
        >>> trainer = Trainer(net, "dfa", Classify(2), "sgd")
        >>> scalars = trainer.step(Batch(torch.randn(5, 4), torch.tensor([0, 1, 0, 1, 1])))
        >>> sorted(scalars)
        ['accuracy', 'loss', 'loss/1']
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
        precision: Precision = "float32",
        update: Update = "together",
        seed: int = 0,
        total_steps: int | None = None,
    ) -> None:
        check_choice("precision", precision, get_args(Precision))
        check_choice("update", update, get_args(Update))
        if clip is not None:
            check_positive("clip", clip)
        refuse_meta(net)
        like = first_trainable(net)
        self.task = task
        self.rule: Rule = rule if isinstance(rule, Rule) else build(RULES, rule, section="rule", outside=Rule)
        self.net = unwrapped(net, one_backward=self.rule.one_backward)
        self.update = update
        self._like = like
        self.device = like.device
        self.dtype = like.dtype
        self.clip = clip
        self.precision: Precision = resolve(precision, self.device)
        self.channels_last: bool | None = None  # whether images lie so in memory; `bind` decides
        self.noise = Noise(seed)
        self.total_steps = total_steps
        self.progress = Progress()
        self._optimizer_spec = optimizer
        self._schedule_spec = schedule
        self.data: Batches | None = None  # of the training that runs
        self._watching: Sequence[Tracker] = ()
        self._bound = False

    def bind(self, batch: Batch) -> None:
        """Bind the rule, once, and hand its parameters and the net's to the optimiser; `step` calls it."""
        if self._bound:
            return
        refuse_no_derivatives(self.net, self.rule)
        with explained(batch):
            materialize(self.net, batch.first(2).x, self.noise)
        with same_modes(self.net), explained(batch), eager(), self.noise.fold("bind").global_rng(self.device):
            self.net.train()
            self.rule.bind(self.net, self.task, batch)
        self.rule.to(self.device)
        self._not_finite = set(find_non_finite(self.net, self.rule))
        if isinstance(self._optimizer_spec, torch.optim.Optimizer):
            self.optimizer = self._optimizer_spec
            add_groups(self.optimizer, self.rule.optimizer_groups(self.net), trainable(self.rule))
        else:
            self.optimizer = make_optimizer(self._optimizer_spec, self.rule.optimizer_groups(self.net))
        keep_gradients_in_order(self.optimizer)
        self.schedule = make_schedule(self._schedule_spec, self.optimizer, self.total_steps)
        self._units = self.rule.units(self.net)
        known = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        self._fused = FusedUpdate(self.net, self.rule, self.optimizer, self.clip) if self.update == "fused" else None
        self._not_optimized = [p for p in (*self.net.parameters(), *self.rule.parameters()) if id(p) not in known]
        self.channels_last = allows_channels_last(self, batch)
        self._bound = True

    def compute_as(self, precision: Precision | None, channels_last: bool | None) -> None:
        """Compute as a training did whose checkpoint says so; to be called before `bind`. None leaves it open."""
        if precision is not None:
            self.precision = resolve(precision, self.device)
        if channels_last is not None:
            self.channels_last = channels_last

    def _in_order(self, x: Inputs) -> Inputs:
        return channels_last(x) if self.channels_last else x

    def _batch_in_order(self, batch: Batch) -> Batch:
        return batch._replace(x=channels_last(batch.x)) if self.channels_last else batch

    def step(self, batch: Batch | tuple[Any, Any]) -> Scalars:
        """One step of training on one batch, x as the net takes it.

        Args:
            batch: a Batch, or a pair (x, y) of arrays or tensors, where x may be a tuple or a dict of those.

        Returns:
            The rule's detached scalars, among them `loss`.

        Raises:
            UserError: the batch is no such pair.
        """
        batch = Batch.of(batch, self._like)
        if self.progress.step == 0:
            with explained(batch):
                return self._step(batch)
        return self._step(batch)

    def _step(self, batch: Batch) -> Scalars:
        self.bind(batch)
        batch = self._batch_in_order(batch)
        for module in (self.net, self.rule):
            if not module.training:  # asked first: a walk over all modules costs a small net 7 % of its step
                module.train()
        self._zero_grad()
        with self.arithmetic(), self._fused.active() if self._fused else nullcontext():
            scalars = self.rule.gradients(self.net, self.task, batch, self.noise.at(self.progress.step))
        for tracker in self._watching:
            tracker.on_gradients(self, batch, scalars)
        if self.clip is not None:
            for unit in self._units:
                nn.utils.clip_grad_norm_(unit, self.clip)
        self.optimizer.step()
        self.schedule.step()
        self.progress.step += 1
        return scalars

    def _zero_grad(self) -> None:
        self.optimizer.zero_grad()
        for p in self._not_optimized:  # those too count when clipping
            p.grad = None

    def step_memory(self, batch: Batch, *, with_gradients: bool = True) -> int:
        """Peak bytes that the rule takes for one batch, beyond parameters and optimiser state; see `bpfree.memory`.

        Nothing is learned: weights and buffers are left as if it had not been called, gradients are cleared.

        Args:
            with_gradients: count gradients, as they come into being. Without, they are there before, and what is
                counted is activations and temporaries.
        """
        self.bind(batch)
        batch = self._batch_in_order(batch)
        self._zero_grad()
        with self.arithmetic():
            pass  # what it checks once is no part of a step
        if not with_gradients:
            for p in trainable(self.net, self.rule):
                p.grad = torch.zeros_like(p)

        def gradients() -> None:
            with self.arithmetic(), self._fused.active(step=False) if self._fused else nullcontext():
                self.rule.gradients(self.net, self.task, batch, self.noise.fold("memory"))

        weights = [p.detach().clone() for p in self.net.parameters()]  # which "in_place" gives back but for rounding
        with same_modes(self.net), unchanged_buffers(self.net):
            self.net.train()
            peak = peak_step_memory(gradients, self.device)
        for p, before in zip(self.net.parameters(), weights, strict=True):
            p.data.copy_(before)
        self._zero_grad()
        return peak

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within it, net and rule are in evaluation mode and nothing is differentiated."""
        with same_modes(self.net, self.rule), torch.no_grad(), self.arithmetic():
            self.net.eval()
            self.rule.eval()
            yield

    def predict(self, x: Inputs) -> Tensor:
        """Output [B, D] in evaluation mode, x as the net takes it."""
        with self.evaluating():
            return self.rule.predict(self.net, self._in_order(x))

    def extra_outputs(self, x: Inputs) -> dict[str, Tensor]:
        """What the rule has to set beside its predictions; see `Rule.extra_outputs`."""
        with self.evaluating():
            return self.rule.extra_outputs(self.net, self._in_order(x))

    def evaluate(self, batches: Batches) -> dict[str, float]:
        """The task's metrics, means over all samples, and of classes those in `evaluation.BY_CLASS`."""
        return judge(self.task, batches.epoch(), self.predict, self.net).metrics

    def fit(
        self,
        train: Batches,
        epochs: int,
        *,
        validation: Batches | None = None,
        early_stopping: EarlyStopping | None = None,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        """Train up to `epochs` epochs, from wherever `progress` is.

        Raises:
            UserError: early stopping without a validation split, or on a metric that the task has not.
            DivergedError: a loss or weight is no longer finite.
            KeyboardInterrupt: Ctrl-C; `progress` is then that of a whole step, and trackers have been told.
        """
        self.total_steps = epochs * len(train)
        self.bind(next(train.epoch()))
        if early_stopping is not None:
            self._try_early_stopping(early_stopping, validation)
        self.rule.begin(train, steps=self.total_steps, resumed=self.progress.step > 0)
        self.data = train
        self._watching = [t for t in trackers if type(t).on_gradients is not Tracker.on_gradients]
        try:
            for tracker in trackers:
                tracker.on_start(self)
            with same_modes(self.net), interrupt_between_steps() as interrupted:
                self.net.train()
                while self.progress.step < self.total_steps and not self.progress.stopped:
                    self._epoch(train, validation, early_stopping, trackers, interrupted)
        except DivergedError as error:
            for tracker in trackers:
                tracker.on_diverged(self, error)
            raise
        finally:
            self.data, self._watching = None, ()
            for tracker in trackers:
                tracker.on_end()

    def _epoch(
        self,
        train: Batches,
        validation: Batches | None,
        early_stopping: EarlyStopping | None,
        trackers: Sequence[Tracker],
        interrupted: Callable[[], bool],
    ) -> None:
        epoch, done = divmod(self.progress.step, len(train))
        wall, cpu = time.perf_counter(), time.process_time()
        pending: list[Scalars] = []
        for batch in train.epoch(epoch, start=done):
            pending.append(self.step(batch))
            if len(pending) == _CHECK_EVERY:
                self._settle(pending)
            for tracker in trackers:
                tracker.on_step(self, batch)
            if interrupted() and self.progress.step % len(train):
                self._settle(pending)
                self._spent(wall, cpu)
                self._interrupt(trackers)
        self._settle(pending)
        seconds = time.perf_counter() - wall
        record: Record = {
            "kind": "epoch",
            "epoch": epoch + 1,
            "step": self.progress.step,
            "lr": self.optimizer.param_groups[0]["lr"],
            "train": self.progress.means(),
            "samples_per_second": (len(train) - done) * train.batch_size / seconds,
        }
        if validation is not None:
            record["validation"] = self.evaluate(validation)
        self._refuse_non_finite_weights()
        self.progress.judge(record, early_stopping)
        self.progress.sums, self.progress.counts = {}, {}
        self._spent(wall, cpu)
        record["seconds"] = self.progress.wall_seconds
        record["cpu_seconds"] = self.progress.cpu_seconds
        self.progress.history.append(record)
        for tracker in trackers:
            tracker.on_epoch(self, record)
        if interrupted():
            self._interrupt(trackers)

    def _interrupt(self, trackers: Sequence[Tracker]) -> None:
        for tracker in trackers:
            tracker.on_interrupt(self)
        raise KeyboardInterrupt

    def _try_early_stopping(self, early_stopping: EarlyStopping, validation: Batches | None) -> None:
        """Fail now and not after an epoch."""
        if validation is None:
            raise UserError("early_stopping: needs validation samples, but data.validation is 0. Use 0.1, say")
        early_stopping.score(judge(self.task, [next(validation.epoch())], self.predict, self.net).metrics)

    def _spent(self, wall: float, cpu: float) -> None:
        self.progress.wall_seconds += time.perf_counter() - wall
        self.progress.cpu_seconds += time.process_time() - cpu

    def _settle(self, pending: list[Scalars]) -> None:
        """Read the scalars of the last steps at once, check them, and add them to the epoch's sums."""
        first = self.progress.step - len(pending)
        for step, name, value in values_of(pending, first):
            if not math.isfinite(value):
                what = f"the loss of unit '{name.removeprefix('loss/')}'" if "/" in name else f"the {name}"
                raise diverged(self.optimizer, self.clip, f"{what} became {value} at step {step}")
            self.progress.add(name, value)
        pending.clear()

    def _refuse_non_finite_weights(self) -> None:
        for found in find_non_finite(self.net, self.rule):
            if found not in self._not_finite:  # a constant such as the -inf of a mask
                raise diverged(self.optimizer, self.clip, f"{found} is not finite at step {self.progress.step}")

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """How forward passes are computed; see `precision`. A net that the rule looks into is not compiled."""
        compiler = eager() if self.rule.looks_inside else nullcontext()
        with compiler, arithmetic(self.precision, self.device):
            yield
