"""Trainings by `Trainer.fit`: `python -m tests.mesh.loops RANK SIZE FOLDER NAME...`. Each process writes a file."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from bpfree import Trainer
from bpfree.data import Batches, Preprocess
from bpfree.data.sets.digits import digits
from bpfree.tasks import Classify
from bpfree.training.listener import Listener
from tests.helpers import net_for

RUNS: dict[str, dict[str, Any]] = {
    "mono_forward": {"mesh": "blocks"},
    "noprop_dt": {"mesh": "blocks"},
    "dfa": {"mesh": "data"},
}


class Looks(Listener[Any]):
    """Notes how many parameters have memory in the middle of an epoch."""

    held = 0

    def on_step(self, trainer: Any, batch: Any) -> None:
        self.held = sum(p.numel() for p in trainer.net.parameters() if p.untyped_storage().nbytes())


def run(rule: str) -> dict[str, Any]:
    data = digits(None)
    train, validation = data.train.take(slice(0, 300)), data.test.take(slice(0, 101))
    preprocess = Preprocess.of(data, train)
    net = net_for(rule)
    trainer = Trainer(net, rule, Classify(10), {"name": "sgd", "lr": 0.05}, compute=RUNS[rule], seed=1)
    batches = Batches(train, preprocess, 50, dtype=torch.float64, seed=1)
    looks = Looks()
    check = Batches(validation, preprocess, 40, dtype=torch.float64)
    trainer.fit(batches, 2, validation=check, trackers=[looks])
    return {
        "history": trainer.progress.history,
        "held": looks.held,
        "norm": float(sum(p.detach().norm() for p in net.parameters())),
    }


def main(rank: int, size: int, folder: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    for name in names:
        (folder / f"{name}.{rank}.json").write_text(json.dumps(run(name)))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
    os._exit(0)  # torch aborts an ordinary exit of several processes now and then
