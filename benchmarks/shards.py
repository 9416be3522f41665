"""Samples in tars and Parquet files: images per second, memory, and bytes that each process reads, beside arrays.

    python benchmarks/shards.py [--images 20000] [--size 64] [--keep FOLDER]

JPEGs of 80x80 pixels are drawn as in images.py and scaled to --size. Each way is a process of its own, so that its peak
of memory is its own; its baseline is what a process has that has imported the same and read nothing. The ways:

    arrays          decoded images in memory
    webdataset      JPEGs in tars of 1,000 samples
    webdataset npy  decoded images in such tars
    parquet         JPEGs in the form of Hugging Face, in row groups of 100
    parquet lists   decoded images as tensors, in row groups of 100

An epoch is shuffled, in batches of 128, normalised. Images a second are those of the second epoch; those a second of
processor time do not depend on what else the machine does. The first batch comes when the index of the tars is made,
and mean and deviation are known. The last columns are the bytes that the processes of a training on 2, 4 and 8 read in
an epoch, as a share of what one process reads: the largest share of one process, and the sum.
"""

import argparse
import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import webdataset
from images import BATCH, CLASSES, generate, peak_mib
from PIL import Image
from rich.console import Console
from rich.table import Table

from bpfree.data import DATASETS, Batches, Dataset, Preprocess

WAYS: dict[str, tuple[str, str, dict[str, object]]] = {  # data set, files, options
    "arrays": ("arrays", "arrays.npz", {"memory_limit": 1 << 20}),
    "webdataset": ("webdataset", "jpg-*.tar", {"channels": 3}),
    "webdataset npy": ("webdataset", "npy-*.tar", {}),
    "parquet": ("parquet", "images.parquet", {"channels": 3}),
    "parquet lists": ("parquet", "lists.parquet", {}),
}
SIZES = (2, 4, 8)


def write(folder: Path, count: int, size: int) -> None:
    """Write the images in all forms."""
    generate(folder / "folder", count)
    files = sorted((folder / "folder").glob("*/*.jpg"), key=lambda file: file.name)
    jpegs = [file.read_bytes() for file in files]
    shape = (size, size)
    x = np.stack([np.array(Image.open(io.BytesIO(j)).resize(shape, Image.Resampling.BILINEAR)) for j in jpegs])
    y = np.arange(count) % CLASSES
    np.savez(folder / "arrays.npz", x=np.ascontiguousarray(x.transpose(0, 3, 1, 2)), y=y)
    for ending, values in (("jpg", jpegs), ("npy", x)):
        with webdataset.ShardWriter(str(folder / f"{ending}-%04d.tar"), maxcount=1000, verbose=0) as writer:
            for i, value in enumerate(values):
                writer.write({"__key__": f"{i:08}", ending: value, "cls": int(y[i])})
    pictures = [{"bytes": jpeg, "path": f"{i}.jpg"} for i, jpeg in enumerate(jpegs)]
    pq.write_table(pa.table({"image": pictures, "label": y}), folder / "images.parquet", row_group_size=100)
    lists = pa.FixedShapeTensorArray.from_numpy_ndarray(x)
    pq.write_table(pa.table({"image": lists, "label": y}), folder / "lists.parquet", row_group_size=100)


def opened(way: str, folder: Path, size: int) -> Callable[[], Dataset]:
    """Return a function that opens the data set."""
    name, files, options = WAYS[way]
    scale = {"size": size} if options.get("channels") else {}
    return lambda: DATASETS[name](folder, path=folder / files, test=0.0, **options, **scale)


def measure(way: str, folder: Path, size: int) -> dict[str, object]:
    """Return seconds to the first batch, images per second, peak MiB above the baseline, and shares of bytes."""
    read = opened(way, folder, size)
    baseline, begun = peak_mib(), time.perf_counter()
    data = read()
    batches = Batches(data.train, Preprocess.of(data, data.train), BATCH, seed=0)
    next(batches.epoch(0))
    first = time.perf_counter() - begun
    count, begun, total = len(batches) * BATCH, (time.perf_counter(), time.process_time()), 0.0
    for x, _ in batches.epoch(1):
        total += float(x[0, 0, 0, 0])
    return {
        "first": first,
        "rate": count / (time.perf_counter() - begun[0]),
        "per_core": count / (time.process_time() - begun[1]),
        "peak": peak_mib() - baseline,
        "shares": shares(read, batches.preprocess) if way != "arrays" else {},
    }


def shares(read: Callable[[], Dataset], preprocess: Preprocess) -> dict[int, tuple[float, float]]:
    """Return for numbers of processes the largest share of the bytes that one process reads, and their sum."""

    def bytes_of(rank: int, size: int) -> int:
        source = read().train  # opened anew: nothing is kept from before
        before = source.x.file.bytes_read  # type: ignore[union-attr]
        for _ in Batches(source, preprocess, BATCH, seed=0).epoch(1, part=(rank, size)):
            pass
        return source.x.file.bytes_read - before  # type: ignore[union-attr]

    whole = bytes_of(0, 1)
    found = {size: [bytes_of(rank, size) / whole for rank in range(size)] for size in SIZES}
    return {size: (max(each), sum(each)) for size, each in found.items()}


def main() -> None:
    """Write the files, measure each way in its process, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--keep", type=Path, help="folder in which the files are kept for the next call")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.way:
        json.dump(measure(options.way, options.root, options.size), sys.stdout)
        return
    place = options.keep or Path(tempfile.mkdtemp())
    root = place / f"shards-{options.images}-{options.size}"
    if not root.exists():
        write(root, options.images, options.size)
    shutil.rmtree(root / "indexes", ignore_errors=True)
    table = Table(title=f"{options.images:,} JPEGs, {options.size}x{options.size}")
    for heading in (
        "way",
        "first batch, s",
        "images/s",
        "images/CPU s",
        "peak MiB",
        *(f"bytes, {size} proc." for size in SIZES),
    ):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    for way in WAYS:
        command = [sys.executable, *sys.argv, "--way", way, "--root", str(root)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        bytes_read = [f"{most:.0%}, {total:.0%}" for most, total in found["shares"].values()]
        numbers = [f"{found['first']:.2f}", *(f"{found[name]:,.0f}" for name in ("rate", "per_core", "peak"))]
        table.add_row(way, *numbers, *bytes_read)
    Console(width=120).print(table)
    if options.keep is None:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
