"""The only training loop: epochs, checks of losses and weights, early stopping, Ctrl-C."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from bpfree.data import Batches
from bpfree.errors import DivergedError, UserError
from bpfree.grad import trainable
from bpfree.nets.unchanged import same_modes
from bpfree.training.determinism import settings
from bpfree.training.divergence import divergence_error, find_non_finite, read_scalars
from bpfree.training.energy import EnergyMeter, open_meter
from bpfree.training.evaluation import evaluate_split
from bpfree.training.interrupt import interrupt_between_steps
from bpfree.training.listener import Listener, Record
from bpfree.training.measured import MeasuredStepper
from bpfree.training.progress import EarlyStopping
from bpfree.training.state import load_state, state_of
from bpfree.types import Batch, Scalars

_CHECK_EVERY = 20  # steps between two looks at the losses; each look waits for the device


class _Fit(NamedTuple):
    """The arguments of one call of `fit`, and a function that returns True after Ctrl-C."""

    train: Batches
    validation: Batches | None
    early_stopping: EarlyStopping | None
    listeners: Sequence[Listener[Any]]
    interrupted: Callable[[], bool]


class Trainer(MeasuredStepper):
    """Trains a net by a rule. `fit` runs whole epochs; with a loop of your own, call `step` for each batch.

    Args:
        net: any module. It is trained in place. `torch.compile(net)` is trained as it was written, without the
            compiler. `DistributedDataParallel` works with rules that have `one_backward`.
        rule: a name, a spec, or a Rule.
        task: gives target, loss and metrics; see `bpfree.tasks`.
        optimizer: a name or a spec (`{"name": "sgd", "lr": 0.1}`), or an optimiser made for the net's parameters. The
            rule's parameters are added to it.
        schedule: a name or a spec (`{"name": "cosine", "total_steps": 500}`), stepped at every step. `fit` fills in
            `total_steps` where it is left out.
        clip: largest gradient norm, for each of the rule's units by itself. None: no clipping.
        compute: a precision, such as "bfloat16" or "auto", or a spec (`{"precision": "auto", "update": "fused"}`); see
            `bpfree.training.compute.Compute`. The attribute `precision` is what "auto" became.
        seed: of everything random in training.

    Attributes:
        data: the training batches while `fit` runs; None before and after.

    Raises:
        UserError: an argument is not allowed, or the net has no trainable parameters.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        >>> from bpfree.tasks import Classify
        >>> trainer = Trainer(net, "dfa", Classify(2), "sgd")
        >>> scalars = trainer.step(Batch(torch.randn(5, 4), torch.tensor([0, 1, 0, 1, 1])))
        >>> sorted(scalars)
        ['accuracy', 'loss', 'loss/1']
    """

    data: Batches | None = None
    _gradient_listeners: Sequence[Listener[Any]] = ()
    _meter: EnergyMeter | None = None  # while `fit` runs

    def __repr__(self) -> str:
        # The net's own repr would be a tree of many lines.
        net = f"{type(self.net).__name__} of {sum(p.numel() for p in trainable(self.net)):,} parameters"
        return f"Trainer({net}, {self.rule!r}, {self.task!r}, {self.device}, {self.progress.step} steps)"

    def fit(
        self,
        train: Batches,
        epochs: int,
        *,
        validation: Batches | None = None,
        early_stopping: EarlyStopping | None = None,
        trackers: Sequence[Listener[Any]] = (),
    ) -> None:
        """Train until `epochs` epochs are done in all, from wherever `progress` is.

        Args:
            train: the training batches.
            epochs: length of the whole training, including the epochs before a resume.
            validation: batches to evaluate after each epoch.
            early_stopping: when to stop before `epochs`. None: never.
            trackers: objects to be called while training; see `bpfree.trackers`.

        Raises:
            UserError: early stopping without a validation split, or by a metric that the task does not have.
            DivergedError: a loss or weight is no longer finite.
            KeyboardInterrupt: Ctrl-C. `progress` then describes a whole number of steps, and each tracker's
                `on_interrupt` was called.
        """
        self.total_steps = epochs * len(train)
        # Before anything is written: a training that cannot begin leaves no trace.
        self.bind(next(train.epoch()))
        self.mesh.refuse_trackers(trackers)
        if early_stopping is not None:
            self._try_early_stopping(early_stopping, validation)
        with settings(self.deterministic, self.device):
            self.rule.begin(train, steps=self.total_steps, resumed=self.progress.step > 0)
        self.data = train
        self.mesh.begin()
        self._meter = open_meter(self.device)
        # Chosen once: a loop over all listeners in each step would slow down small nets.
        self._gradient_listeners = [each for each in trackers if each.listens_to_gradients]
        try:
            for tracker in trackers:
                tracker.on_start(self)
            # torchrun ends its processes by SIGTERM if it was ended so itself.
            with same_modes(self.net), interrupt_between_steps(by_sigterm=self.mesh.world is not None) as interrupted:
                self.net.train()
                arguments = _Fit(train, validation, early_stopping, trackers, interrupted)
                while self.progress.step < self.total_steps and not self.progress.stopped:
                    self._epoch(arguments)
        except DivergedError as error:
            for tracker in trackers:
                tracker.on_diverged(self, error)
            raise
        finally:  # listeners hold locks and files
            self.data, self._gradient_listeners, self._meter = None, (), None
            self.mesh.whole_rows = None
            if self.mesh.apart is not None:
                self.mesh.apart.restore()
            for tracker in trackers:
                tracker.on_end()

    def stop(self, why: str) -> None:
        """End the training early, from a tracker: after the running step, or after the epoch that is over.

        The steps since the last epoch become an epoch of their own, with its record and its checkpoint. The run then
        ends as usual: the net is evaluated, and result.json says why it stopped. Of several processes, any may call it,
        and all end after the same step, which may be the next one.

        Args:
            why: the reason, such as "1,000 steps are enough".

        Raises:
            UserError: `fit` is not running.

        Example:
            >>> class Budget(Listener[Trainer]):
            ...     def on_step(self, trainer: Trainer, batch: Batch) -> None:
            ...         if trainer.progress.step == 1000:
            ...             trainer.stop("1,000 steps are enough")
        """
        if self.data is None:
            raise UserError("trainer.stop: no training is running. Call it from a tracker, while fit runs")
        self.progress.stop(why)

    @property
    def parameter_numbers(self) -> tuple[list[int], list[list[int]]]:
        """The numbers of the optimiser's parameters, and by group those in all processes; see `Updater`."""
        updater = self._after_bind("parameter_numbers")
        return updater.numbers, updater.all_numbers

    def state_dict(self) -> dict[str, Any]:
        """Return all that a training needs to go on: net, rule, optimiser, schedule, seed, and the steps taken.

        `torch.save` stores it, and `torch.load(..., weights_only=True)` reads it without executing code. As in torch,
        the tensors are those of the trainer and change with further steps; `copy.deepcopy` keeps them.

        Raises:
            UserError: the trainer is not bound yet, so that rule and optimiser do not have a state.

        Example:
            >>> import torch
            >>> from bpfree.tasks import Classify
            >>> trainer = Trainer(torch.nn.Linear(4, 2), "backprop", Classify(2))
            >>> _ = trainer.step((torch.randn(5, 4), torch.tensor([0, 1, 0, 1, 1])))
            >>> trainer.state_dict()["progress"]["step"]
            1
        """
        return state_of(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state: the next steps give the same bits as if the training had never stopped.

        Call `bind` with any batch of the training first, because the rule and the optimiser get their shapes there.

        Args:
            state: what `state_dict` returned for a trainer with the same net, rule, optimiser and schedule.

        Raises:
            UserError: the trainer is not bound yet, or the state is of another kind of training.
        """
        load_state(self, state)

    def _gradients_are_wanted(self) -> bool:
        return any(listener.wants_gradients(self.progress.step) for listener in self._gradient_listeners)

    def _show_gradients(self, batch: Batch, scalars: Scalars) -> None:
        if self._gradients_are_wanted():
            (scalars,) = self.mesh.merged([scalars], len(batch.y))
        for listener in self._gradient_listeners:
            if listener.wants_gradients(self.progress.step):
                listener.on_gradients(self, batch, scalars)

    def _epoch(self, fit: _Fit) -> None:
        """Train to the end of the epoch, and tell the listeners; raise KeyboardInterrupt after Ctrl-C."""
        cpu = self.progress.cpu_seconds
        with self.progress.timed(self._meter):
            start, first = time.perf_counter(), self.progress.step
            if self.mesh.apart is not None:
                self.mesh.apart.release()
                self.mesh.apart.lane.coming = len(fit.train) - self.progress.step % len(fit.train)
            self._steps(fit)
            samples = (self.progress.step - first) * fit.train.batch_size
            pace = samples / (time.perf_counter() - start)
            self._agree_to_stop()
            whole = self.progress.step % len(fit.train) == 0  # False: it stops within the epoch
            record = self._record(fit, pace) if whole or self.progress.stopped else None
        self.progress.cpu_seconds = cpu + self.mesh.total(self.progress.cpu_seconds - cpu)
        if record is not None:
            record["seconds"] = self.progress.wall_seconds
            record["cpu_seconds"] = self.progress.cpu_seconds
            # Before on_epoch, where the run folder saves a checkpoint: a resumed run then has the record too.
            self.progress.history.append(record)
            for listener in fit.listeners:
                listener.on_epoch(self, record)
            self._agree_to_stop()
        # Ctrl-C may have come while the epoch was recorded.
        if self.mesh.total(float(fit.interrupted())) > 0:
            self._join_parts()
            for listener in fit.listeners:
                listener.on_interrupt(self)
            self.mesh.meet()  # a process that ends first must not take the others with it
            raise KeyboardInterrupt

    def _steps(self, fit: _Fit) -> None:
        """Take the steps that are left of the running epoch, or those up to Ctrl-C."""
        epoch, done = divmod(self.progress.step, len(fit.train))
        pending: list[Scalars] = []
        # Trackers of gradients see whole batches; else a process reads only its own rows.
        part = None if self._gradient_listeners else self.mesh.rows_of_batches
        self.mesh.whole_rows = fit.train.batch_size if part else None
        for batch in fit.train.epoch(epoch, start=done, part=part):
            pending.append(self.step(batch))
            if len(pending) == _CHECK_EVERY:
                self._check_losses(pending, fit.train.batch_size)
            # Listeners see a step whose loss may be checked only some steps later; an epoch is checked as a whole.
            for listener in fit.listeners:
                listener.on_step(self, batch)
            if self._meter is not None:
                self._meter.look()
            whole = self.progress.step % len(fit.train) == 0
            asked = fit.interrupted() or self.progress.stopped
            self.mesh.look_for_stop(asked, self.progress.step, ends_epoch=whole)
            # After the last step the epoch is whole, and its record is made before the training stops.
            if self.mesh.stops and not whole:
                break
        self._check_losses(pending, fit.train.batch_size)

    def _agree_to_stop(self) -> None:
        """Let all processes know if a tracker of one of them has stopped the training, and why."""
        if self.mesh.total(float(self.progress.stopped)) > 0:
            self.progress.stop(self.mesh.first_of(self.progress.why_stopped))

    def _record(self, fit: _Fit, pace: float) -> Record:
        """Evaluate the epoch that is over; return its line of metrics.jsonl and start the next epoch's sums.

        Args:
            fit: the arguments of `fit`.
            pace: samples per second.
        """
        self._join_parts()
        record: Record = {
            "kind": "epoch",
            "epoch": -(-self.progress.step // len(fit.train)),  # upwards: the last one may be stopped within
            "step": self.progress.step,
            "lr": self.optimizer.param_groups[0]["lr"],
            "train": self.progress.means(),
            "samples_per_second": pace,
        }
        self.mesh.share_statistics(self.net)
        if fit.validation is not None:
            # Of the first process: the others may have another processor, which rounds otherwise.
            record["validation"] = self.mesh.same(self.evaluate(fit.validation))
        self._refuse_non_finite_weights()  # before any listener can save them
        self.progress.compare_with_best(record, fit.early_stopping)
        self.progress.sums, self.progress.counts = {}, {}  # before a checkpoint, which begins the next epoch
        return record

    def _join_parts(self) -> None:
        """Get the weights and the sums of the running epoch of those parts of the net that other processes train."""
        if (apart := self.mesh.apart) is not None:
            apart.gather()
            self.progress.sums, self.progress.counts = apart.joined(self.progress.sums, self.progress.counts)

    def _try_early_stopping(self, early_stopping: EarlyStopping, validation: Batches | None) -> None:
        """Raise UserError if early stopping cannot work: before training, and not after the first epoch."""
        if validation is None:
            raise UserError("early_stopping: needs validation samples, but data.validation is 0. Use 0.1, say")
        early_stopping.score(evaluate_split(self.task, [next(validation.epoch())], self.predict, self.net).metrics)

    def _check_losses(self, pending: list[Scalars], samples: int) -> None:
        """Add the scalars of the last steps to the epoch's sums, and clear the list; raise if one is not finite.

        Args:
            pending: the scalars of each step.
            samples: B.
        """
        first = self.progress.step - len(pending)
        for step, name, value in read_scalars(self.mesh.merged(pending, samples), first):
            if not math.isfinite(value):
                what = f"the loss of unit '{name.removeprefix('loss/')}'" if "/" in name else f"the {name}"
                raise divergence_error(self.optimizer, self.clip, f"{what} became {value} at step {step}")
            self.progress.add(name, value)
        pending.clear()

    def _refuse_non_finite_weights(self) -> None:
        for tensor in find_non_finite(self.net, self.rule):
            if tensor not in self._never_finite:
                raise divergence_error(
                    self.optimizer, self.clip, f"{tensor} is not finite at step {self.progress.step}"
                )
