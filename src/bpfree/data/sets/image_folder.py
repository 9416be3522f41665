"""Images of one's own: a folder with a folder of images for each class."""

from pathlib import Path

import torch
from torch import Tensor

from bpfree.data.classes import hold_out, test_share
from bpfree.data.dataset import Dataset, Split
from bpfree.data.files.pixels import Channels, Decoded, Wanted, read_pixels, refuse_broken
from bpfree.data.files.tree import Listed, Tree, read_tree
from bpfree.disk.paths import user_path
from bpfree.errors import UserError


def folder(
    data_dir: Path,
    *,
    path: Path,
    size: int | list[int] | None = None,
    channels: Channels = "auto",
    test: float | None = None,
    skip_broken: bool = False,
    memory_limit: float | None = None,
    cache: Path | None = None,
    bits: int | None = None,
) -> Dataset:
    """Images of your own: a folder at data.path with a folder for each class, or such folders in train, val and test.

    Args:
        data_dir: for the cache.
        path: the folder. Relative ones count from the current folder, and configs of runs keep it absolute.
        size: what images are scaled to, H = W, or [H, W]; default: their own, if all agree.
        channels: 1 (grey), 3 (colour), or "auto": grey if all files are.
        test: share that is held out by a fixed key; default: 0.2, and none if there are split folders.
        skip_broken: leave out what cannot be read, in place of an error that lists it.
        memory_limit: MiB that the decoded images may take; what takes more is decoded once into a file and read from
            there, with the same results. Default: a quarter of the memory.
        cache: the folder for that; default: "decoded" in the data directory.
        bits: of images of 16 bits, how many hold values, 8 to 16: white is 2^bits - 1. Default: 16, where an image
            that leaves the top two empty is an error.

    Raises:
        UserError: no such folder, files that are no images, sizes that differ, a class or a split without images.
    """
    if bits is not None and not 8 <= bits <= 16:
        raise UserError(f"data.bits: found {bits}, allowed: 8 to 16")
    root = user_path(path, "data.path").resolve()
    tree = _with_test(read_tree(root), test)
    files = [file for listed in tree.splits.values() for file in listed.files]
    kept = data_dir / "decoded" if cache is None else user_path(cache, "data.cache")
    wanted = Wanted(channels, None if size is None else _height_and_width(size), bits)
    decoded = read_pixels(files, root, wanted, memory_limit=memory_limit, cache=kept)
    if not skip_broken:
        refuse_broken(decoded.broken, files, root)
    splits = _splits(tree, decoded)
    return Dataset(
        "folder",
        splits["train"],
        splits.get("test"),
        len(tree.classes),
        validation=splits.get("validation"),
        class_names=tree.classes,
    )


def _height_and_width(size: int | list[int]) -> tuple[int, int]:
    values = [size, size] if isinstance(size, int) else size
    if len(values) != 2 or min(values) < 1:
        raise UserError(f"data.size: found {size}, allowed: one length above 0 for squares, or [height, width]")
    return values[0], values[1]


def _with_test(tree: Tree, share: float | None) -> Tree:
    """With a test split held out of training, unless there is one already or none is wanted."""
    if not (share := test_share(share, tree.splits)):
        return tree
    train = tree.splits["train"]
    chosen = [_take(train, index) for index in hold_out(torch.tensor(train.labels), share)]
    return tree._replace(splits={**tree.splits, "train": chosen[0], "test": chosen[1]})


def _take(listed: Listed, index: Tensor) -> Listed:
    positions = index.tolist()
    return Listed([listed.files[i] for i in positions], [listed.labels[i] for i in positions])


def _splits(tree: Tree, decoded: Decoded) -> dict[str, Split]:
    """The images that were read, split as their files.

    Raises:
        UserError: a split, or a class in training, has none.
    """
    labels = torch.tensor([label for listed in tree.splits.values() for label in listed.labels])
    origin = torch.cat([torch.full((len(listed.files),), i) for i, listed in enumerate(tree.splits.values())])
    is_read = torch.ones(len(labels), dtype=torch.bool)
    is_read[list(decoded.broken)] = False
    whole, origin = Split(decoded.x, labels[is_read]), origin[is_read]
    splits = {}
    for i, name in enumerate(tree.splits):
        index = (origin == i).nonzero().flatten()
        if not len(index):
            raise UserError(f"data.skip_broken: without broken images, {name} has none left, allowed: at least one")
        splits[name] = whole.slice(int(index[0]), len(index))
    there = set(splits["train"].y.tolist())
    if lost := [name for label, name in enumerate(tree.classes) if label not in there]:
        raise UserError(f"data.skip_broken: without broken images, {', '.join(lost)} has none left for training")
    return splits
