"""Write small tars and Parquet files, with the packages that people use and with tarfile."""

import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import webdataset
from PIL import Image

from bpfree.data import Batches, Preprocess


def png(x):
    """A tensor of bytes [C, H, W] as a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(x[0].numpy() if len(x) == 1 else x.permute(1, 2, 0).numpy()).save(buffer, format="PNG")
    return buffer.getvalue()


def npy(array, pickled=False):
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(array), allow_pickle=pickled)
    return buffer.getvalue()


def samples(split):
    """The members of each sample of a split of images."""
    return [{"png": png(x), "cls": str(int(y)).encode()} for x, y in zip(split.x, split.y, strict=True)]


def write_tar(path, each, keys=None):
    """A tar written by tarfile: for each sample its members by their endings."""
    with tarfile.open(path, "w") as tar:
        for i, members in enumerate(each):
            for ending, content in members.items():
                add(tar, f"{keys[i] if keys else f'{i:06}'}.{ending}", content)
    return path


def add(tar, name, content=b"", **changes):
    """Add one member, with whatever is changed in its header."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in changes.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(content))


def write_shards(folder, name, split, per_shard):
    """Tars written by the package webdataset, and the pattern for their paths."""
    folder.mkdir(exist_ok=True)
    with webdataset.ShardWriter(str(folder / f"{name}-%03d.tar"), maxcount=per_shard, verbose=0) as writer:
        for i, (x, y) in enumerate(zip(split.x, split.y, strict=True)):
            writer.write({"__key__": f"{i:06}", "png": png(x), "cls": int(y)})
    last = (len(split.y) - 1) // per_shard
    return folder / f"{name}-{{000..{last:03}}}.tar"


def huggingface(names):
    """What Hugging Face writes about a data set of images into the description of a Parquet file."""
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


def write_images(path, split, per_group, names=None):
    """A Parquet file of images in the form of Hugging Face."""
    images = [{"bytes": png(x), "path": f"{i}.png"} for i, x in enumerate(split.x)]
    table = pa.table({"image": images, "label": split.y.numpy()})
    if names:
        table = table.replace_schema_metadata(huggingface(names))
    pq.write_table(table, path, row_group_size=per_group)
    return path


def batches_of(dataset, batch_size=32, **options):
    """The training batches of a data set."""
    return Batches(dataset.train, Preprocess.of(dataset, dataset.train), batch_size, **{"seed": 3, **options})


def assert_same_for_any_number_of_processes(dataset, **options):
    """The parts of 1, 2 and 3 processes are the batches of one; epochs differ; the middle of an epoch is as it was."""
    batches = batches_of(dataset, **options)
    whole = list(batches.epoch(1))
    for size in (1, 2, 3):
        parts = [list(batches.epoch(1, part=(rank, size))) for rank in range(size)]
        for i, batch in enumerate(whole):
            assert torch.equal(torch.cat([part[i].x for part in parts]), batch.x)
            assert torch.equal(torch.cat([part[i].y for part in parts]), batch.y)
    for left, batch in zip(batches.epoch(1, start=len(whole) // 2), whole[len(whole) // 2 :], strict=True):
        assert torch.equal(left.x, batch.x)
    other = list(batches.epoch(2))
    assert not any(torch.equal(a.x, b.x) for a, b in zip(whole, other, strict=True))
