"""Trainings by `bpfree.fit` and a plain loop: `python -m tests.mesh.fits RANK SIZE FOLDER` is one of several processes.

Each process writes what came of each training.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

import bpfree
from bpfree import Batch, Noise
from bpfree.data.sets.digits import digits
from bpfree.nets import NETS
from bpfree.rules import RULES
from bpfree.runs.run import Run
from bpfree.tasks import Classify

TASK = Classify(10)
STOPPING: Any = {"patience": 2, "metric": "loss"}


def data() -> tuple[torch.Tensor, torch.Tensor]:
    train = digits(None).train
    return train.x[:600].double(), train.y[:600]


def net() -> nn.Module:
    """In float64, with batch norm and dropout."""
    torch.manual_seed(0)
    layers = (nn.Flatten(), nn.Linear(64, 24), nn.BatchNorm1d(24), nn.Tanh(), nn.Dropout(0.2), nn.Linear(24, 10))
    return nn.Sequential(*layers).double()


def fit(rule: Any, net: nn.Module, **options: Any) -> Run:
    """Batches of 63 samples do not divide by the number of processes."""
    optimizer = {"name": "sgd", "lr": 2.0}
    return bpfree.fit(
        net, data(), rule, epochs=10, optimizer=optimizer, batch_size=63, test=data(), verbose=False, **options
    )


def everything(folder: Path) -> Run:
    """Augmentation, mixup, clipping, validation, early stopping, a ridge read-out and trackers."""
    return fit(
        "backprop",
        net(),
        augment={"shift": 1, "mixup": 0.3},
        clip=1.0,
        early_stopping=STOPPING,
        readout="ridge",
        trackers=[{"name": name, "every": 7} for name in ("bp_cosine", "gradients", "weights", "segment_accuracy")],
    )


def fused(folder: Path) -> Run:
    """Each segment is updated as soon as it has learned."""
    return fit("mono_forward", net(), update="fused", clip=0.5, trackers=[{"name": "local_loss", "every": 7}])


def population(folder: Path) -> Run:
    small = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double()
    return fit(RULES["es"](population=8, evaluator="loop"), small, mesh="population", validation=0.2)


def on_disk(folder: Path) -> Run:
    """A run in a folder, where one may have begun."""
    return fit("dfa", net(), out=folder / "run", resume=True, early_stopping=STOPPING)


def own_norms(folder: Path) -> Run:
    """Each process normalises by its own rows, so the weights are not those of one process."""
    return fit("backprop", net(), mesh={"name": "data", "batch_norm": "per_process"})


def loop(folder: Path) -> dict[str, Any]:
    """A plain loop: each process has its own samples, and gradients are averaged."""
    size = distributed.get_world_size() if distributed.is_initialized() else 1
    rank = distributed.get_rank() if distributed.is_initialized() else 0
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 10)).double()
    rule, (x, y) = RULES["mono_forward"](), data()
    rule.bind(plain, TASK, Batch(x[:4], y[:4]))
    optimizer = torch.optim.SGD([*plain.parameters(), *rule.parameters()], lr=0.05)
    for step in range(5):
        own = slice(60 * step + 60 // size * rank, 60 * step + 60 // size * (rank + 1))
        optimizer.zero_grad()
        rule.gradients(plain, TASK, Batch(x[own], y[own]), Noise(0, step))
        bpfree.mesh.average_gradients(plain, rule)
        optimizer.step()
    return {"weights": {**plain.state_dict(), **rule.state_dict()}}


def transformer(outputs: int, **options: Any) -> nn.Module:
    """In float64, for 8 tokens below 20."""
    torch.manual_seed(0)
    return NETS["transformer"]((8,), outputs, width=16, depth=3, heads=2, vocabulary=20, **options).double()


def tokens() -> torch.Tensor:
    """Texts of 1 to 8 tokens from 1 on, which zeros fill."""
    random = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 9, (90, 1), generator=random)
    return torch.randint(1, 20, (90, 8), generator=random) * (torch.arange(8) < lengths)


def language(folder: Path) -> Run:
    """The processes have other numbers of labels that count."""
    x = tokens()
    y = torch.where(x > 0, x * 3 % 20, -100)
    net = transformer(20, each_step=True, dropout=0.1)
    options: Any = {"task": "language", "epochs": 2, "batch_size": 15, "optimizer": {"name": "adam", "lr": 1e-2}}
    return bpfree.fit(net, (x, y), "mono_forward", mesh="data", test=(x, y), verbose=False, **options)


def texts(folder: Path) -> Run:
    """Texts with a class each, and blocks in other processes, which see only the features of the padding."""
    x = tokens()
    data = x, x[:, 0] % 2
    net = transformer(2, pool="mean", padding=0)
    options: Any = {"epochs": 2, "batch_size": 15, "optimizer": {"name": "adam", "lr": 1e-2}}
    return bpfree.fit(net, data, "mono_forward", mesh="blocks", test=data, verbose=False, **options)


class Press(bpfree.Tracker):
    """Presses Ctrl-C in the last process: after a step, or while an epoch is recorded."""

    def __init__(self, step: int = 0, epoch: int = 0) -> None:
        self.step, self.epoch = step, epoch
        self.stopped: int | None = None

    def press(self) -> None:
        if bpfree.mesh.rank_of_process() == bpfree.mesh.launched() - 1:
            signal.raise_signal(signal.SIGINT)

    def on_step(self, trainer: bpfree.Trainer, batch: Batch) -> None:
        if trainer.progress.step == self.step:
            self.press()

    def on_epoch(self, trainer: bpfree.Trainer, record: dict[str, Any]) -> None:
        if record["epoch"] == self.epoch:
            self.press()

    def on_interrupt(self, trainer: bpfree.Trainer) -> None:
        self.stopped = trainer.progress.step


def interrupted(folder: Path) -> dict[str, Any]:
    """Ctrl-C in one process, within an epoch and at the ends of epochs, among them the last one."""
    stops = []
    for press in (Press(step=3), Press(step=8), Press(epoch=1), Press(step=80), Press(epoch=10)):
        try:
            fit("dfa", net(), trackers=[press])
            stops.append("not interrupted")
        except KeyboardInterrupt:
            stops.append(press.stopped)
    return {"weights": {}, "stops": stops}


class Stop(bpfree.Tracker):
    """Stops the training from the last process: after a step, or after an epoch."""

    def __init__(self, step: int = 0, epoch: int = 0) -> None:
        self.step, self.epoch = step, epoch

    def stop(self, trainer: bpfree.Trainer) -> None:
        if bpfree.mesh.rank_of_process() == bpfree.mesh.launched() - 1:
            trainer.stop("enough")

    def on_step(self, trainer: bpfree.Trainer, batch: Batch) -> None:
        if trainer.progress.step == self.step:
            self.stop(trainer)

    def on_epoch(self, trainer: bpfree.Trainer, record: dict[str, Any]) -> None:
        if record["epoch"] == self.epoch:
            self.stop(trainer)


def stopped(folder: Path) -> Run:
    """A logger listens, too: of several processes, only that of the first one."""
    board = {"name": "tensorboard", "folder": str(folder / "boards")}
    return fit("dfa", net(), trackers=[Stop(epoch=3), board])


def stopped_within(folder: Path) -> dict[str, Any]:
    """Within an epoch, at its end, and with blocks between which nothing is sent."""
    apart = {"name": "denoiser", "blocks": 2, "width": 16}
    trainings: Any = [("dfa", net(), 11, "auto"), ("dfa", net(), 16, "auto"), ("noprop_dt", apart, 11, "blocks")]
    runs = [fit(rule, net, mesh=mesh, trackers=[Stop(step=step)]) for rule, net, step, mesh in trainings]
    return {"weights": {}, "ends": [(run.progress.step, len(run.metrics), run.result["stopped"]) for run in runs]}


def diverged(folder: Path) -> dict[str, Any]:
    small = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double()
    try:
        bpfree.fit(small, data(), "backprop", optimizer={"name": "sgd", "lr": 1e308}, verbose=False)
    except bpfree.DivergedError as error:
        return {"weights": {}, "error": str(error)}
    return {"weights": {}, "error": ""}


FITS: dict[str, Callable[[Path], Run | dict[str, Any]]] = {
    each.__name__: each
    for each in (
        everything,
        fused,
        population,
        on_disk,
        own_norms,
        language,
        texts,
        loop,
        interrupted,
        stopped,
        stopped_within,
        diverged,
    )
}
TIMED = {"samples_per_second", "seconds", "cpu_seconds"}


def outcome(name: str, folder: Path) -> dict[str, Any]:
    """What came of a training, without what the clock tells."""
    run = FITS[name](folder)
    if not isinstance(run, Run):
        return run
    return {
        "weights": {**run.net.state_dict(), **run.trainer.rule.state_dict()},
        "history": [{key: value for key, value in record.items() if key not in TIMED} for record in run.metrics],
        "tracked": run.tracked,
        "test": run.result["test"],
        "ended": (run.weights, run.trainer.progress.best_epoch, run.trainer.progress.step),
        "seconds": run.result["wall_seconds"],
        "mesh": (run.result["processes"], run.result["mesh"]),
    }


def main(rank: int, size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    for name in FITS:
        torch.save(outcome(name, folder), folder / f"{name}.{rank}.pt")
    if rank:
        os._exit(0)
    try:
        bpfree.mesh.Group().barrier()
    except bpfree.mesh.LostProcessError as error:
        (folder / "lost").write_text(str(error))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
    os._exit(0)  # torch aborts an ordinary exit of several processes now and then
