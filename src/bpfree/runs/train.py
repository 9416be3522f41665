"""Train as a config says. Every door (`bpfree.fit`, the command line, compare, tune) ends in `train`."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import nn

from bpfree.data import Batches, Dataset, Preprocess, Split
from bpfree.data.transforms import Transform, make_transform
from bpfree.memory import ProcessMemory, peak_process_memory
from bpfree.mesh import rank_of_process
from bpfree.rule import Rule
from bpfree.runs.assemble import Setup, assemble
from bpfree.runs.config import Config
from bpfree.runs.device import resolve_device
from bpfree.runs.keeper import Keeper, keeping
from bpfree.runs.progress_bar import progress_of
from bpfree.runs.result import summarize
from bpfree.runs.run import Run
from bpfree.runs.start import start_from
from bpfree.screen.live import Screen
from bpfree.tasks import Loss
from bpfree.trackers import Tracker, make_trackers
from bpfree.training.evaluation import evaluate_split
from bpfree.training.ridge_readout import Ridge


class _Data(NamedTuple):
    """The data set of a training, and its splits.

    Attributes:
        dataset: as it was read; `dataset.test` is the test split.
        train: samples that the net learns from.
        validation: samples for early stopping and the curves; None if the config asks for none.
    """

    dataset: Dataset
    train: Split
    validation: Split | None


def train(
    config: Config,
    *,
    net: nn.Module | None = None,
    rule: Rule | None = None,
    dataset: Dataset | None = None,
    trackers: Sequence[Tracker] = (),
    loss: Loss | None = None,
    transforms: Sequence[Transform] | None = None,
    out: Path | None = None,
    resume: bool = False,
    verbose: bool | None = None,
) -> Run:
    """Train as the config says, and evaluate on the test split.

    Args:
        config: complete and checked.
        net: used instead of the net that the config names.
        rule: used instead of the rule that the config names.
        dataset: used instead of the data set that the config names.
        trackers: listen in addition to those that the config names.
        loss: used instead of the task's loss.
        transforms: change training samples, instead of those that the config names.
        out: the run folder; it must be new, unless the run is to be resumed. None trains in memory.
        resume: go on from the folder's last checkpoint.
        verbose: show the progress; see `bpfree.screen.live.Screen`.

    Returns:
        The finished run.

    Raises:
        UserError: anything that cannot work; the folder cannot be written, or another process writes to it.
    """
    # First: a wrong option is found before data are read.
    watching = make_trackers([*config.trackers, *trackers])
    changes = [make_transform(spec) for spec in config.data.augment.transforms] if transforms is None else transforms
    screen = Screen(verbose if rank_of_process() == 0 else False)
    # Before the data are read, so that the user sees at once what begins.
    screen.say(_what_begins(config, net, rule))
    data = _read(config, dataset)
    objects: dict[str, Any] = {"net": net, "rule": rule, "data": dataset, "trackers": trackers or None, "loss": loss}
    objects["augment"] = transforms
    from_python = [name for name, value in objects.items() if value is not None]
    setup = assemble(config, Preprocess.of(data.dataset, data.train), net, rule, loss, from_python)
    setup = replace(setup, transforms=tuple(changes))
    if config.train.start_from is not None and not resume:  # a resumed run has weights of its own
        start_from(setup.trainer.net, config.train.start_from)
    batches = setup.training_batches(data.train)
    mesh = setup.trainer.mesh
    for tracker in watching:
        tracker.on_config(config.plain())
    with keeping(setup, batches, out, resume) as keeper, peak_process_memory(setup.trainer.device) as memory:
        weights = _fit(setup, data, batches, watching, keeper, screen)
        # What was timed is that of the first process, so that all of them return the same.
        setup.trainer.continue_from(mesh.same(setup.trainer.progress))
        run = Run(setup, setup.trainer.progress, data.dataset.test, weights=weights, folder=out)
        run = replace(run, result=mesh.same(_measure(run, data, batches, memory)))
        # result.json says that the run is over, so it is written when nothing is left that could need a resume.
        # Pictures come after it: they can be drawn again.
        keeper.finish(run.result)
        for tracker in watching:
            tracker.on_result(run.result)
        if out is not None and mesh.is_first:
            run.plots(run.test or data.validation or data.train)
    return run


def _what_begins(config: Config, net: nn.Module | None, rule: Rule | None) -> str:
    """Return what is trained and where, such as "training mlp by dfa on digits: 10 epochs on cpu"."""
    net_name = config.net["name"] if net is None else type(net).__name__
    rule_name = config.rule["name"] if rule is None else type(rule).__name__
    epochs = f"{config.train.epochs} epoch{'s' * (config.train.epochs != 1)}"
    device = resolve_device(config.train.device)
    return f"training {net_name} by {rule_name} on {config.data.name}: {epochs} on {device}"


def _read(config: Config, dataset: Dataset | None) -> _Data:
    """Read the data set, unless it was given, and split it."""
    dataset = config.data.load() if dataset is None else config.data.select(dataset)
    return _Data(dataset, *config.data.split(dataset, config.train.seed))


def _fit(
    setup: Setup, data: _Data, batches: Batches, trackers: Sequence[Tracker], keeper: Keeper, screen: Screen
) -> Literal["last", "best"]:
    """Train all epochs, restore the best weights if training stops early, and fit the read-out.

    The keeper listens last: what it writes includes what the others added to an epoch's record.

    Returns:
        The weights that the net has in the end.
    """
    config, trainer = setup.config.train, setup.trainer
    stopping = config.early_stopping.build() if config.early_stopping else None
    readout = Ridge(setup.batches(data.train), config.ridge) if config.readout == "ridge" else None
    trainer.fit(
        batches,
        config.epochs,
        validation=None if data.validation is None else setup.batches(data.validation),
        early_stopping=stopping,
        trackers=[*trackers, *([readout] if readout else []), progress_of(screen, config.epochs, batches), keeper],
    )
    # A tracker may stop a training before its first step: then no epoch is the best.
    weights: Literal["last", "best"] = "best" if stopping and trainer.progress.history else "last"
    if weights == "best":
        keeper.restore_best(trainer)
    if readout:
        readout.fit(trainer)
        keeper.replace(trainer, f"{weights}.ckpt")  # the last epoch wrote it before the read-out was there
    return weights


def _measure(run: Run, data: _Data, batches: Batches, process_memory: Callable[[], ProcessMemory]) -> dict[str, Any]:
    """Evaluate on the test split, measure memory, and return all as result.json holds it."""
    trainer = run.trainer
    predict = trainer.mesh.shared(trainer.predict)
    test = run.test and evaluate_split(run.task, run.batches(run.test).epoch(), predict, trainer.net)
    controls = run.extra_metrics()
    first = next(batches.epoch())
    # The process is measured first: to measure the memory of one step copies the weights, which training never did.
    process = process_memory()
    memory = {
        "peak_memory_bytes": process.peak,
        "memory_growth_bytes": process.growth,
        "step_memory_bytes": trainer.step_memory(trainer.mesh.part(first)),
    }
    summary = summarize(run, data.dataset.name, data.train.y, test)
    flops = trainer.flops(first)
    of_heads = {} if flops is None else {"net_flops": flops.net, "head_flops": flops.heads}
    return summary | ({"controls": controls} if controls else {}) | of_heads | memory
