"""One of several processes: `python -m tests.mesh.worker RANK SIZE FOLDER [CASE]...`. It writes the weights."""

import os
import sys
from pathlib import Path

import torch
from torch import distributed

from tests.mesh.cases import CASES, REPLICAS, trained


def main(rank: int, size: int, folder: Path, only: list[str]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    for case in [*CASES, *REPLICAS]:
        if str(case) in only:
            torch.save(trained(case, size), folder / f"{case}.{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
    os._exit(0)  # torch aborts an ordinary exit of several processes now and then
