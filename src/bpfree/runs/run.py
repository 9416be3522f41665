"""A run: a net, the rule that trains it, and what came of it. Every door ends in `train`."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from bpfree._version import __version__
from bpfree.data import Batches, Dataset, Preprocess, Split, from_python
from bpfree.data.tensors import in_shape, to_inputs, to_tensor
from bpfree.data.tokens import tells_numbers
from bpfree.errors import UserError
from bpfree.inputs import Inputs, tensors_of
from bpfree.memory import peak_process_memory
from bpfree.nets import NETS
from bpfree.nets.acceptance import inner, refuse_meta
from bpfree.noise import Noise
from bpfree.pictures.draw import draw
from bpfree.rule import Rule
from bpfree.runs import checkpoint, folder
from bpfree.runs.config import OF_A_MACHINE, Config
from bpfree.runs.progress_bar import ProgressBar
from bpfree.runs.result import summarize
from bpfree.spec import build
from bpfree.tasks import TASKS, DataTask, Loss, reading
from bpfree.trackers import Record, Tracker, make_trackers
from bpfree.training.compute import Compute
from bpfree.training.evaluation import evaluate_split, mean_metrics
from bpfree.training.freeze import freeze
from bpfree.training.ridge_readout import Ridge
from bpfree.training.trainer import Trainer

_EVALUATION_BATCH = 500


class Run:
    """A net, the rule that trains it, and what came of it.

    Attributes:
        config: complete; what `bpfree train` would run.
        trainer: with `net`, `rule` and `progress`.
        result: test metrics and cost, as in result.json; empty until the training is over.
        weights: which weights the net has, "last" or "best".
        folder: where it is on disk, or None.
    """

    def __init__(self, config: Config, trainer: Trainer, preprocess: Preprocess, test: Split | None = None) -> None:
        self.config = config
        self.trainer = trainer
        self.preprocess = preprocess
        self.test = test
        self.result: dict[str, Any] = {}
        self.weights: Literal["last", "best"] = "last"
        self.folder: Path | None = None
        self.given: list[str] = []  # what came as objects from Python and no config can rebuild

    @property
    def net(self) -> nn.Module:
        """The trained net."""
        return self.trainer.net

    @property
    def task(self) -> DataTask:
        """What the net is trained for."""
        assert isinstance(self.trainer.task, DataTask)
        return self.trainer.task

    @property
    def metrics(self) -> list[Record]:
        """One record per epoch, as in metrics.jsonl."""
        return self.trainer.progress.history

    @property
    def tracked(self) -> list[Record]:
        """What trackers measured, as in metrics.jsonl: `tracker`, `step` (the first is 1) and `values` by layer."""
        return self.trainer.progress.tracked

    def scores(self, x: Any) -> Tensor:
        """Output of the net [N, D] on raw samples [N, ...], given as the training data were.

        Args:
            x: an array; of a net of several inputs a tuple or a dict of arrays, as in training.

        Raises:
            UserError: samples of another form or shape than those of training, or NaN among them.
        """
        several = bool(self.preprocess.inputs)
        samples = self._as_trained(to_inputs(x, "x", lists=several) if several else to_tensor(x, "x"))
        for tensor in tensors_of(samples):
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise UserError("x: contains NaN or infinite values, allowed: finite ones")
        unlabelled = self.batches(self.preprocess.unlabelled(samples))
        outputs = [self.trainer.predict(batch.x) for batch in unlabelled.epoch()]
        return torch.cat(outputs).float().cpu() if outputs else torch.zeros(0, self.task.dim)

    def predict(self, x: Any) -> Tensor:
        """The most likely class of each sample, int64 [N], or of each pixel [N, H, W]; rebuilt samples; numbers.

        Of several labels a sample: which of them are true, bool [N, C]. Numbers are in the units of the labels.

        Raises:
            UserError: samples of another shape than those of training.
        """
        return self.task.decode(self.scores(x))

    def predict_proba(self, x: Any) -> Tensor:
        """The probability of each class, [N, C], or of each class at each pixel, [N, C, H, W].

        Raises:
            UserError: the run has no classes.
        """
        if self.task.classes is None:
            self.task.probabilities(torch.zeros(0))  # says why not
        return self.task.probabilities(self.scores(x))

    def evaluate(self, data: Any = None) -> dict[str, float]:
        """Metrics on data in any form that `bpfree.fit` takes as objects; without any, on the test split.

        Raises:
            UserError: there is no test split, or the data do not fit the training's.
        """
        if data is None and self.test is None:
            raise UserError("data: none given, and the run has no test split. Give a pair (samples, labels)")
        split = self.test if data is None else self._split(data)
        assert split is not None
        return self.trainer.evaluate(self.batches(split))

    def extra_metrics(self) -> dict[str, dict[str, float]]:
        """Metrics on the test split of what the rule sets beside its predictions; see `bpfree.Rule.extra_outputs`."""
        if self.test is None or type(self.trainer.rule).extra_outputs is Rule.extra_outputs:
            return {}
        return mean_metrics(self.task, self.batches(self.test).epoch(), self.trainer.extra_outputs)

    def _split(self, data: Any) -> Split:
        split = from_python(data, classes=self.preprocess.classes, **reading(self.config.task)).train
        return split._replace(x=self._as_trained(split.x))

    def _as_trained(self, x: Inputs) -> Inputs:
        """Images in the layout of the training samples."""
        return in_shape(x, self.preprocess.shape) if isinstance(x, Tensor) else x

    def save(self, path: str | Path) -> Path:
        """Write the run to a new folder, to be loaded with `bpfree.load`.

        Raises:
            UserError: the folder cannot be written or holds another run.
        """
        out = folder.place(path)
        writer = folder.RunFolder(out, self.config.dump(), self.extra())
        try:
            writer.on_start(self.trainer)
            writer.on_end()
            self._copy_checkpoints(out)
            if self.result:
                writer.finish(self.result)
            draw(self, out / folder.PLOTS, self.test)
        finally:
            writer.release()
        return out

    def _copy_checkpoints(self, out: Path) -> None:
        """What a folder of this run has beside the last state, with the weights that the net has now."""
        if self.folder is not None:
            for name in (folder.LAST, folder.BEST):
                if checkpoint.exists(self.folder / name):
                    own = self.trainer if name == f"{self.weights}.ckpt" else None
                    checkpoint.copy(self.folder / name, out, weights_of=own)
        elif self.weights == "best":
            checkpoint.save(self.trainer, out / folder.BEST, self.extra())

    def plots(self) -> list[Path]:
        """Draw all pictures anew into the run's folder; those of samples show the test split, where there is one.

        Raises:
            UserError: the run has no folder.
        """
        if self.folder is None:
            raise UserError("plots: the run has no folder. Use save, which draws them too")
        return draw(self, self.folder / folder.PLOTS, self.test)

    def batches(self, split: Split) -> Batches:
        """Batches of a split in order, for evaluation."""
        device, dtype = self.trainer.device, self.trainer.dtype
        split, rebuild = self.task.prepare(split), self.task.rebuilds
        return Batches(split, self.preprocess, _EVALUATION_BATCH, device=device, dtype=dtype, rebuild=rebuild)

    def training_batches(self, split: Split) -> Batches:
        """Batches of a split, shuffled and augmented as the config says."""
        data = self.config.data
        return Batches(
            self.task.prepare(split),
            self.preprocess,
            data.batch_size,
            device=self.trainer.device,
            dtype=self.trainer.dtype,
            augment=data.augment.build(self.preprocess),
            seed=self.config.train.seed,
            rebuild=self.task.rebuilds,
        )

    def extra(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the training."""
        return {
            "preprocess": self.preprocess.save(),
            "given": self.given,
            "config": self.config.plain(),
            "version": __version__,
        }


def train(
    config: Config,
    *,
    net: nn.Module | None = None,
    rule: Rule | None = None,
    dataset: Dataset | None = None,
    trackers: Sequence[Tracker] = (),
    loss: Loss | None = None,
    out: Path | None = None,
    resume: bool = False,
) -> Run:
    """Train as the config says, and evaluate on the test split.

    Args:
        net, rule, dataset: in place of those that the config names.
        trackers: beside those that the config names.
        loss: in place of the task's.
        out: the run folder; it must be new, unless the run is to be resumed.
        resume: go on from the folder's last checkpoint.

    Raises:
        UserError: anything that cannot work; the folder cannot be written, or another process writes to it.
    """
    objects = (("net", net), ("rule", rule), ("data", dataset), ("trackers", trackers or None), ("loss", loss))
    given = [name for name, value in objects if value is not None]
    watching = make_trackers([*config.trackers, *trackers])
    dataset = config.data.load() if dataset is None else config.data.select(dataset)
    train_split, validation_split = config.data.split(dataset, config.train.seed)
    this = assemble(config, Preprocess.of(dataset, train_split), net, rule, loss)
    this.test, this.given = dataset.test, given
    trainer, batches = this.trainer, this.training_batches(train_split)
    validation = None if validation_split is None else this.batches(validation_split)
    stopping = config.train.early_stopping.build() if config.train.early_stopping else None
    readout = Ridge(this.batches(train_split), config.train.ridge) if config.train.readout == "ridge" else None
    listeners = [*watching, *([readout] if readout else []), ProgressBar(config.train.epochs, batches)]
    with _kept(this, batches, out, resume) as keeper, peak_process_memory(trainer.device) as peak:
        listeners.append(keeper)
        trainer.fit(batches, config.train.epochs, validation=validation, early_stopping=stopping, trackers=listeners)
        if stopping:
            keeper.restore_best(trainer)
            this.weights = "best"
        if readout:
            readout.fit(trainer)
            keeper.replace(trainer, f"{this.weights}.ckpt")
        test = this.test and evaluate_split(this.task, this.batches(this.test).epoch(), trainer.predict, trainer.net)
        controls = this.extra_metrics()
        memory = {"peak_memory_bytes": peak(), "step_memory_bytes": trainer.step_memory(next(batches.epoch()))}
        told = {"controls": controls} if controls else {}
        this.result = summarize(this, dataset, train_split, test) | told | memory
        if isinstance(keeper, folder.RunFolder):
            keeper.finish(this.result)
            draw(this, keeper.path / folder.PLOTS, this.test or validation_split or train_split)
    return this


def assemble(
    config: Config, preprocess: Preprocess, net: nn.Module | None, rule: Rule | None, loss: Loss | None = None
) -> Run:
    """Net, rule, task and trainer, on the device; a net or rule of one's own takes the place of the config's."""
    seed = config.train.seed
    if net is None and config.net["name"] in NETS:
        preprocess = preprocess.as_numbers()  # none of them takes tokens
    preprocess = tells_numbers(preprocess, net)
    task = build({name: task.of for name, task in TASKS.items()}, config.task, preprocess, section="task")
    task.use_loss(loss)
    if net is None:
        _refuse_several(preprocess, config)
        with Noise(seed).fold("net").global_rng():
            net = build(NETS, config.net, preprocess.shape, task.dim, section="net", outside=nn.Module)
        preprocess = tells_numbers(preprocess, net)
    assert net is not None
    refuse_meta(net)
    freeze(inner(net)[1], config.train.freeze)
    device = resolve_device(config.train.device)
    trainer = Trainer(
        net.to(device),
        rule or config.rule,
        task,
        config.optimizer,
        schedule=config.schedule,
        clip=config.train.clip,
        compute=Compute(config.train.precision, config.train.update),
        seed=seed,
    )
    return Run(config, trainer, preprocess)


def _refuse_several(preprocess: Preprocess, config: Config) -> None:
    """Raise UserError if a shipped net, which takes one tensor, is to learn from samples of several inputs."""
    if preprocess.inputs and config.net["name"] in NETS:
        names = ", ".join(name for name, _ in preprocess.inputs)
        raise UserError(
            f"net: found '{config.net['name']}', which takes one tensor, but samples have {len(preprocess.inputs)} "
            f"inputs ({names}), allowed: a module of your own whose forward takes them"
        )


@contextmanager
def _kept(this: Run, batches: Batches, out: Path | None, resume: bool) -> Iterator[folder.RunFolder | folder.KeepBest]:
    """What keeps a training: memory, a new folder, or one whose last checkpoint is now in the trainer.

    The rule is bound first, and a new folder made when training starts: a run that cannot begin leaves none. A folder
    is locked from before it is read or written until the training is over.
    """
    if out is None:
        yield folder.KeepBest()
        return
    this.trainer.total_steps = this.config.train.epochs * len(batches)
    lock = folder.take(out, new=False) if resume else None
    writer = folder.RunFolder(out, None if resume else this.config.dump(), this.extra(), lock)
    try:
        if resume:
            state = checkpoint.read_state(out / folder.LAST)
            _refuse_another_config(this.config, state.config, out)
            this.trainer.compute_as(state.precision, state.channels_last)
        this.trainer.bind(next(batches.epoch()))
        if resume:
            checkpoint.load(this.trainer, out / folder.LAST)
        this.folder = out
        yield writer
    finally:
        writer.release()


def _refuse_another_config(config: Config, begun: dict[str, Any], out: Path) -> None:
    """A run goes on as it was begun; only where its data lie and what computes may change."""
    now, begun = config.plain(), _in_current_form(begun)
    for section, values in now.items():
        before = begun.get(section)
        if not isinstance(values, dict) or not isinstance(before, dict):
            values, before = {section: values}, {section: before}
        for key in {**before, **values}:
            if before.get(key) != values.get(key) and f"{section}.{key}" not in OF_A_MACHINE:
                raise UserError(
                    f"resume: {out} was begun with {section}.{key}={before.get(key)}, found {values.get(key)}. Resume "
                    "it with what it was begun with, or train in another folder"
                )


def _in_current_form(values: dict[str, Any]) -> dict[str, Any]:
    """Return the config of a checkpoint, which an earlier version may have written, with the keys of this version."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the user cannot change what is in a checkpoint
        try:
            return Config.model_validate(values).plain()
        except ValidationError:  # keys that no version has: the comparison names them
            return values


def resolve_device(name: str) -> torch.device:
    """A device by name; "auto" takes a GPU if there is one.

    Raises:
        UserError: no such device on this machine.
    """
    if name == "auto":
        accelerators = (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available()))
        name = next((kind for kind, there in accelerators if there), "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, AttributeError, ImportError) as error:
        raise UserError(f"device: found '{name}', which this machine does not have. Allowed: auto, cpu") from error
    return device
