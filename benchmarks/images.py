"""A folder of small JPEGs: time to the first batch, memory, and images per second, compared with a DataLoader.

    python benchmarks/images.py [--images 20000] [--size 64] [--workers 2] [--keep FOLDER]

Images of 80x80 pixels are drawn, written as JPEGs and scaled to --size. Each way is a process of its own, so that its
peak of memory is its own; its baseline is what a process has that has imported the same and read nothing. The ways:

    memory    bpfree, all decoded images in memory
    cold      bpfree, memory_limit=0: decoded into a file, which is then read by batches
    cached    the same again, with the file from before
    loader    torch.utils.data.DataLoader over a data set that decodes by Pillow, as torchvision's ImageFolder does

An epoch is shuffled, in batches of 128, normalised. Images a second are those of the second epoch. The first batch of
`memory` and `cold` comes when every image is decoded; that of `cached` when the mean and deviation are known.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from bpfree.data import Batches, Preprocess
from bpfree.data.sets.image_folder import folder

BATCH = 128
CLASSES = 10
WAYS = ("memory", "cold", "cached", "loader")


class ImageFolder(torch.utils.data.Dataset):
    """A data set like torchvision's ImageFolder with Resize, ToTensor and Normalize, without torchvision."""

    def __init__(self, root: Path, size: int) -> None:
        self.files = [(file, label) for label, d in enumerate(sorted(root.iterdir())) for file in sorted(d.iterdir())]
        self.size = size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        file, label = self.files[index]
        with Image.open(file) as image:
            scaled = image.convert("RGB").resize((self.size, self.size), Image.Resampling.BILINEAR)
        x = torch.from_numpy(np.array(scaled)).permute(2, 0, 1).float().div_(255)
        return x.sub_(0.5).div_(0.25), label


def generate(root: Path, count: int) -> None:
    """Write images of ten classes: smooth noise, a colour for each class."""
    rng = np.random.default_rng(0)
    for i in range(count):
        place = root / f"class{i % CLASSES}"
        place.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 255, (10, 10, 3), dtype=np.uint8)
        coarse[..., i % 3] //= 2
        Image.fromarray(coarse).resize((80, 80), Image.Resampling.BICUBIC).save(place / f"{i:06}.jpg", quality=85)


def peak_mib() -> float:
    """Return the peak resident memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def measure(way: str, root: Path, options: argparse.Namespace) -> dict[str, float]:
    """Return seconds to the first batch, images per second in the second epoch, and peak MiB above the baseline."""
    baseline, begun = peak_mib(), time.perf_counter()
    if way == "loader":
        loader = torch.utils.data.DataLoader(
            ImageFolder(root, options.size), BATCH, shuffle=True, num_workers=options.workers, drop_last=True
        )
        epochs = [lambda: iter(loader)] * 2
        count = len(loader) * BATCH
    else:
        limit = None if way == "memory" else 0.0
        data = folder(root.parent, path=root, size=options.size, channels=3, memory_limit=limit, test=0.0)
        train, _ = data.carve(0.0, 0)
        batches = Batches(train, Preprocess.of(data, train), BATCH, seed=0)
        epochs = [lambda: batches.epoch(0), lambda: batches.epoch(1)]
        count = len(batches) * BATCH
    next(epochs[0]())
    first = time.perf_counter() - begun
    begun, total = time.perf_counter(), 0.0
    for x, _ in epochs[1]():
        total += float(x[0, 0, 0, 0])
    seconds = time.perf_counter() - begun
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / (1 << 10) * (options.workers > 0)
    return {
        "first": first,
        "rate": count / seconds,
        "peak": peak_mib() - baseline,
        "worker": children if way == "loader" else 0.0,
    }


def main() -> None:
    """Generate images, measure each way in its process, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2, help="worker processes of the DataLoader")
    parser.add_argument("--keep", type=Path, help="folder in which the images are kept for the next call")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.way:
        json.dump(measure(options.way, options.root, options), sys.stdout)
        return
    place = options.keep or Path(tempfile.mkdtemp())
    root = place / f"images-{options.images}"
    if not root.exists():
        generate(root, options.images)
    shutil.rmtree(place / "decoded", ignore_errors=True)
    mib = options.images * 3 * options.size**2 / (1 << 20)
    table = Table(title=f"{options.images:,} JPEGs, {options.size}x{options.size}: {mib:,.0f} MiB decoded")
    for heading in ("way", "first batch, s", "images/s", "peak MiB above imports"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    for way in WAYS:
        command = [sys.executable, *sys.argv, "--way", way, "--root", str(root)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        also = f" + {options.workers} x {found['worker']:,.0f}" if found["worker"] else ""
        table.add_row(way, f"{found['first']:.2f}", f"{found['rate']:,.0f}", f"{found['peak']:,.0f}{also}")
    Console(width=100).print(table)
    if options.keep is None:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
