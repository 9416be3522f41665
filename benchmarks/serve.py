"""Requests a second of `bpfree serve` with batches and without, and the accuracy of a run on digits that are drawn.

    python benchmarks/serve.py RUN [RUN...] [--requests 2000] [--clients 32] [--data-dir DIR]

A request asks for one sample. All clients are in one process of the same machine; each sends its next request when the
last one is answered. Without batches each request is computed alone. The two ways take turns, three times each.

The drawings are test images of MNIST, scaled by 0.6 to 1.6 and put anywhere on a board of 64x64. If they get the
form of MNIST, a run that was trained on MNIST is right about as many of them as about the test images themselves.
"""

import argparse
import asyncio
import statistics
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Thread

import httpx
import torch
import uvicorn
from torch.nn import functional as F

from bpfree.data import DATASETS
from bpfree.data.files.download import data_directory
from bpfree.serve.app import application
from bpfree.serve.found import find_runs
from bpfree.serve.limits import Limits
from bpfree.serve.samples import of_drawing
from bpfree.serve.served import Served, load_runs
from bpfree.serve.server import address_of, listen

SIDE = 64


@contextmanager
def serving(served: list[Served], limits: Limits):
    """Yield the address of a service that runs in a thread."""
    with listen("127.0.0.1", 0) as listening:
        server = uvicorn.Server(uvicorn.Config(application(served, limits), log_level="error"))
        thread = Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield address_of(listening)
        server.should_exit = True
        thread.join()


async def ask(address: str, body: list, requests: int, clients: int) -> float:
    """Return the requests a second."""
    left = iter(range(requests))
    async with httpx.AsyncClient(timeout=60) as client:

        async def one() -> None:
            for _ in left:
                (await client.post(address, json=body)).raise_for_status()

        start = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(clients)))
    return requests / (time.perf_counter() - start)


def drawn(images: torch.Tensor) -> list[torch.Tensor]:
    """Return images [N, 28, 28] as drawings [64, 64] of other sizes, anywhere on the board."""
    torch.manual_seed(0)
    drawings = []
    for image in images:
        side = int(28 * (0.6 + torch.rand(()) * 1.0))
        scaled = F.interpolate(image[None, None], size=(side, side), mode="bilinear", antialias=True)[0, 0]
        top, left = (int(torch.randint(SIDE - side + 1, ())) for _ in range(2))
        drawings.append(F.pad(scaled, (left, SIDE - side - left, top, SIDE - side - top)).clamp(0, 1))
    return drawings


def main() -> None:
    """Measure, and print a line for each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--data-dir", type=Path)
    options = parser.parse_args()
    test = DATASETS["mnist"](data_directory(options.data_dir)).test
    drawings = drawn(test.x[:2000, 0].float() / 255)
    for each in load_runs(find_runs(options.runs), options.data_dir, trust=False):
        samples = torch.cat([of_drawing(drawing, each.run.preprocess) for drawing in drawings])
        right = float((each.run.predict(samples) == test.y[:2000]).float().mean())
        blank = each.run.preprocess.blank(1).tolist()
        rates: dict[bool, list[float]] = {True: [], False: []}
        for merges in (True, False) * 3:
            each.merges = merges
            with serving([each], replace(Limits(), collect_seconds=0.004 if merges else 0.0)) as address:
                asking = ask(f"{address}api/runs/{each.id}/predict", blank, options.requests, options.clients)
                rates[merges].append(asyncio.run(asking))
        with_, without = (f"{statistics.median(r):.0f} ({min(r):.0f} to {max(r):.0f})" for r in rates.values())
        print(f"{each.id}: {with_} requests/s in batches, {without} alone; right about {right:.2%} of 2,000 drawings")


if __name__ == "__main__":
    main()
