"""The Python door: fit, load, Run. The shell goes through it too."""

import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bpfree import checkpoint, run
from bpfree._version import __version__
from bpfree.config import Config, DataConfig, TrainConfig, parse
from bpfree.data import DATASETS, Augment, Batches, Dataset, Preprocess, Split, data_directory, from_python
from bpfree.data.arrays import to_tensor
from bpfree.errors import UserError, unknown
from bpfree.lab.plots import plot_training
from bpfree.memory import peak_process_memory
from bpfree.nets import NETS
from bpfree.noise import Noise
from bpfree.progress import ProgressBar
from bpfree.rule import Rule, trainable
from bpfree.spec import Spec, build, split_spec
from bpfree.tasks import TASKS
from bpfree.trackers import Record, Tracker
from bpfree.trainer import Trainer

_EVALUATION_BATCH = 500


class Run:
    """A net, the rule that trains it, and what came of it.

    Attributes:
        config: complete; what `bpfree train` would run.
        trainer: with `net`, `rule` and `progress`.
        result: test metrics and cost, as in result.json; empty until the training is over.
        folder: where it is on disk, or None.
    """

    def __init__(self, config: Config, trainer: Trainer, preprocess: Preprocess, test: Split | None = None) -> None:
        self.config = config
        self.trainer = trainer
        self.preprocess = preprocess
        self.test = test
        self.result: dict[str, Any] = {}
        self.folder: Path | None = None
        self.given: list[str] = []  # what came as objects from Python and no config can rebuild

    @property
    def net(self) -> nn.Module:
        """The trained net."""
        return self.trainer.net

    @property
    def metrics(self) -> list[Record]:
        """One record per epoch, as in metrics.jsonl."""
        return self.trainer.progress.history

    def scores(self, x: Any) -> Tensor:
        """Output of the net [N, D] on raw samples [N, ...], given as the training data were."""
        samples = to_tensor(x, "x")
        blank = Split(samples, torch.zeros(len(samples), dtype=torch.int64))
        outputs = [self.trainer.predict(batch.x) for batch in self.batches(blank).epoch()]
        return torch.cat(outputs).float().cpu() if outputs else torch.zeros(0, self.preprocess.classes)

    def predict(self, x: Any) -> Tensor:
        """The most likely class of each sample, int64 [N].

        Raises:
            UserError: samples of another shape than those of training.
        """
        return self.scores(x).argmax(1)

    def predict_proba(self, x: Any) -> Tensor:
        """The probability of each class, [N, C]."""
        return self.scores(x).softmax(1)

    def evaluate(self, data: Any = None) -> dict[str, float]:
        """Metrics on a pair (samples, labels) or a torch Dataset; without one, on the test split.

        Raises:
            UserError: there is no test split, or the data do not fit the training's.
        """
        if data is None and self.test is None:
            raise UserError("data: none given, and the run has no test split. Give a pair (samples, labels)")
        split = self.test if data is None else from_python(data, classes=self.preprocess.classes).train
        assert split is not None
        return self.trainer.evaluate(self.batches(split))

    def save(self, path: str | Path) -> Path:
        """Write the run to a new folder, to be loaded with `bpfree.load`.

        Raises:
            UserError: the folder cannot be written or holds another run.
        """
        folder = Path(path)
        run.create(folder, self.config.dump())
        writer = run.RunFolder(folder, self.extra())
        writer.on_start(self.trainer)
        for name in (run.LAST, run.BEST):
            checkpoint.save(self.trainer, folder / name, self.extra())
        writer.finish(self.result)
        plot_training(self.metrics, folder / "plots" / "training.png")
        return folder

    def batches(self, split: Split) -> Batches:
        """Batches of a split in order, for evaluation."""
        device, dtype = self.trainer.device, self.trainer.dtype
        return Batches(split, self.preprocess, _EVALUATION_BATCH, device=device, dtype=dtype)

    def extra(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the training."""
        return {"preprocess": self.preprocess.save(), "given": self.given, "version": __version__}


def fit(
    net: nn.Module | Spec,
    data: Any,
    rule: Rule | Spec = "dfa",
    *,
    epochs: int = 10,
    optimizer: Spec = "adam",
    seed: int = 0,
    out: str | Path | None = None,
    test: Any = None,
    **options: Any,
) -> Run:
    """Train a net without end-to-end backpropagation.

    Args:
        net: any `nn.Module`, or the name or spec of one in `bpfree.nets.NETS`.
        data: name of a data set, a pair (samples, labels) of arrays or tensors, or a torch Dataset.
        rule: a name or spec from `bpfree.rules.RULES`, or a Rule.
        epochs: passes over the training data.
        optimizer: a name or spec from `bpfree.optim.OPTIMIZERS`.
        seed: of everything random.
        out: run folder to write; None for none.
        test: a pair or Dataset for the final evaluation; a named data set brings its own.
        options: any other key of the config's `data` and `train` sections (batch_size, validation, shift, flip;
            precision, device, clip, early_stopping), the sections `schedule` and `task`, and `classes`.

    Returns:
        The finished run.

    Raises:
        UserError: anything that cannot work, said in one line.

    Example:
        >>> run = fit("mlp", "digits", rule="dfa", epochs=2)
        >>> run.result["test"]["accuracy"] > 0.5
        True
    """
    classes = options.pop("classes", None)
    values: dict[str, Any] = {
        "data": {"name": data} if isinstance(data, str) else {},
        "net": "mlp" if isinstance(net, nn.Module) else net,
        "rule": "backprop" if isinstance(rule, nn.Module) else rule,
        "optimizer": optimizer,
        "train": {"epochs": epochs, "seed": seed},
    }
    for key, value in options.items():
        if key in ("schedule", "task"):
            values[key] = value
        elif key in DataConfig.model_fields or key in TrainConfig.model_fields:
            values["data" if key in DataConfig.model_fields else "train"][key] = value
        else:
            known = {*DataConfig.model_fields, *TrainConfig.model_fields, "schedule", "task", "classes"}
            raise unknown("argument", key, known - {"name"})
    config = parse(values, "fit")
    dataset = None if isinstance(data, str) else from_python(data, test, classes)
    for section, value in (("net", net), ("rule", rule)):
        if isinstance(value, nn.Module):  # named for the reader; `given` says that no config can rebuild it
            setattr(config, section, {"name": f"{type(value).__module__}:{type(value).__qualname__}"})
    if dataset is not None:
        config.data.name = dataset.name
    return train(
        config,
        net=net if isinstance(net, nn.Module) else None,
        rule=rule if isinstance(rule, Rule) else None,
        dataset=dataset,
        out=None if out is None else Path(out),
    )


def train(
    config: Config,
    *,
    net: nn.Module | None = None,
    rule: Rule | None = None,
    dataset: Dataset | None = None,
    out: Path | None = None,
    resume: bool = False,
) -> Run:
    """Train as the config says, and evaluate on the test split.

    Args:
        net, rule, dataset: in place of those that the config names.
        out: the run folder; it must be new, unless the run is to be resumed.
        resume: go on from the folder's last checkpoint.
    """
    given = [name for name, value in (("net", net), ("rule", rule), ("data", dataset)) if value is not None]
    if dataset is None:
        dataset = DATASETS[config.data.name](data_directory(config.data.dir))
    seed = config.train.seed
    train_split, validation_split = dataset.carve(config.data.validation, seed)
    preprocess = Preprocess.of(dataset, train_split)
    this = _assemble(config, preprocess, net, rule)
    this.test, this.given = dataset.test, given
    trainer = this.trainer
    augment = Augment(config.data.shift, config.data.flip)
    batches = Batches(
        train_split,
        preprocess,
        config.data.batch_size,
        device=trainer.device,
        dtype=trainer.dtype,
        augment=augment,
        seed=seed,
    )
    validation = None if validation_split is None else this.batches(validation_split)
    stopping = config.train.early_stopping.build() if config.train.early_stopping else None
    keep_best = run.KeepBest()
    trackers: list[Tracker] = [ProgressBar(config.train.epochs, batches)]
    if stopping and out is None:
        trackers.append(keep_best)
    writer = None
    if out is not None:
        writer = _open_folder(this, batches, out, resume)
        trackers.append(writer)
    with peak_process_memory(trainer.device) as peak:
        trainer.fit(batches, config.train.epochs, validation=validation, early_stopping=stopping, trackers=trackers)
        if stopping and out is not None:
            checkpoint.load_weights(trainer, out / run.BEST)
        elif stopping:
            keep_best.restore(trainer)
        test = None if this.test is None else this.evaluate()
        peak_bytes = peak()
    this.result = _result(this, dataset, test, "best" if stopping else "last")
    this.result["peak_memory_bytes"] = peak_bytes
    this.result["step_memory_bytes"] = trainer.step_memory(next(batches.epoch()))
    if writer is not None and out is not None:
        plot_training(this.metrics, out / "plots" / "training.png")
        writer.finish(this.result)
    return this


def _assemble(config: Config, preprocess: Preprocess, net: nn.Module | None, rule: Rule | None) -> Run:
    """Net, rule, task and trainer, on the device."""
    seed = config.train.seed
    task = build(TASKS, config.task, preprocess.classes, section="task")
    if net is None:
        with Noise(seed).fold("net").global_rng():
            net = build(NETS, config.net, preprocess.shape, preprocess.classes, section="net", outside=nn.Module)
    assert net is not None
    device = resolve_device(config.train.device)
    if any(isinstance(module, nn.Conv2d) for module in net.modules()):
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # 1.3 times faster convolutions on a CPU, the same values
    trainer = Trainer(
        net.to(device),
        rule or config.rule,
        task,
        config.optimizer,
        schedule=config.schedule,
        clip=config.train.clip,
        precision=config.train.precision,
        seed=seed,
    )
    return Run(config, trainer, preprocess)


def _open_folder(this: Run, batches: Batches, out: Path, resume: bool) -> run.RunFolder:
    """The writer of a new folder, or of one whose last checkpoint is now in the trainer.

    The rule is bound first, so that a run that cannot begin leaves no folder.
    """
    this.trainer.total_steps = this.config.train.epochs * len(batches)
    this.trainer.bind(next(batches.epoch()))
    if resume:
        checkpoint.load(this.trainer, out / run.LAST)
    else:
        run.create(out, this.config.dump())
    this.folder = out
    return run.RunFolder(out, this.extra())


def resume(path: str | Path, data_dir: str | Path | None = None) -> Run:
    """Go on with a run that was interrupted; one that is over is loaded and returned as it is.

    The weights come out bit for bit as if it had never stopped.

    Raises:
        UserError: the folder is no run, has no checkpoint, or its net came from Python.
    """
    folder = Path(path)
    values = run.read_config(folder)
    if given := checkpoint.read_state(folder / run.LAST)["given"]:
        raise UserError(
            f"{folder}: its {' and '.join(given)} came from Python as objects, so no config can rebuild the run. "
            "Start it there again, with bpfree.fit"
        )
    config = parse(values, str(folder / run.CONFIG))
    if data_dir is not None:
        config.data.dir = str(data_dir)
    if run.read_result(folder) is not None:
        return load(folder)
    return train(config, out=folder, resume=True)


def load(
    path: str | Path,
    *,
    net: nn.Module | None = None,
    rule: Rule | None = None,
    weights: str | None = None,
    device: str = "auto",
) -> Run:
    """A run from its folder, ready to predict. No code of the folder is executed.

    Args:
        path: of the run folder.
        net, rule: needed if the run was trained with objects from Python.
        weights: "last" or "best"; default: those that result.json was made with.
        device: where to.

    Raises:
        UserError: the folder is no run or is damaged, or an object is missing.
    """
    folder = Path(path)
    values = run.read_config(folder)
    result = run.read_result(folder) or {}
    if weights not in (None, "last", "best"):
        raise UserError(f"weights: found {weights!r}, allowed: last or best")
    chosen = folder / f"{weights or result.get('weights', 'last')}.ckpt"
    state = checkpoint.read_state(chosen)
    config = _rebuildable(values, state["given"], folder, {"net": net, "rule": rule})
    config.train.device = device
    preprocess = Preprocess.load(state["preprocess"])
    this = _assemble(config, preprocess, net, rule)
    trainer = this.trainer
    trainer.total_steps = 1
    blank = Split(torch.zeros(2, *preprocess.shape), torch.zeros(2, dtype=torch.int64))
    trainer.bind(next(this.batches(blank).epoch()))
    checkpoint.load_weights(trainer, chosen)
    trainer.progress.history = state["progress"]["history"]
    this.result, this.folder, this.given = result, folder, state["given"]
    return this


def _rebuildable(values: dict[str, Any], given: list[str], folder: Path, objects: dict[str, Any]) -> Config:
    """The config of a run, where objects stand in for what came from Python."""
    for name in given:
        if name in objects and objects[name] is None:
            raise UserError(
                f"{folder}: its {name} was an object from Python, so no config can rebuild it. Load it there with "
                f"bpfree.load(folder, {name}=...)"
            )
    described = {name: values.pop(name, None) for name in given}
    config = parse(values, str(folder / run.CONFIG))
    for name, value in described.items():
        setattr(config, name, DataConfig(**value) if name == "data" else value)
    return config


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
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device: found '{name}', which this machine does not have. Allowed: auto, cpu") from error
    return device


def _result(this: Run, dataset: Dataset, test: dict[str, float] | None, weights: str) -> dict[str, Any]:
    """What a run comes to, in plain values."""
    trainer, progress = this.trainer, this.trainer.progress
    last = progress.history[-1] if progress.history else {}
    return {
        "test": test,
        "validation": last.get("validation"),
        "train": last.get("train"),
        "weights": weights,
        "rule": _name(this, "rule"),
        "net": _name(this, "net"),
        "dataset": dataset.name,
        "seed": this.config.train.seed,
        "epochs": len(progress.history),
        "best_epoch": progress.best_epoch,
        "parameters": sum(p.numel() for p in trainable(trainer.net)),
        "rule_parameters": sum(p.numel() for p in trainable(trainer.rule)),
        "wall_seconds": progress.wall_seconds,
        "cpu_seconds": progress.cpu_seconds,
        "device": str(trainer.device),
        "precision": trainer.precision,
        "threads": torch.get_num_threads(),
        "versions": {
            "bpfree": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
        },
    }


def _name(this: Run, section: str) -> str:
    module = this.trainer.net if section == "net" else this.trainer.rule
    return type(module).__name__ if section in this.given else split_spec(getattr(this.config, section), section)[0]
