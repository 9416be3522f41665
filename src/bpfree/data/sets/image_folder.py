"""Read the user's own images: a folder that contains a folder of images for each class."""

from pathlib import Path

import torch
from torch import Tensor

from bpfree.data.classes import hold_out, test_share
from bpfree.data.dataset import Dataset
from bpfree.data.files.pixels import Channels, Decoded, PixelFormat, read_pixels, refuse_broken
from bpfree.data.files.tree import SplitFiles, Tree, read_tree
from bpfree.data.labels import Labels
from bpfree.data.split import Split
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
    """Your own images: a folder at data.path with a folder for each class, or such folders in train, val and test.

    Args:
        data_dir: the directory of all data sets, for the cache.
        path: the folder. A relative path counts from the current folder; a run's config keeps the full path.
        size: the size in pixels that images are scaled to, H = W, or [H, W]. Default: their own size, if all have the
            same.
        channels: 1 (grey), 3 (colour), or "auto": grey if all files are grey.
        test: the share of the images that becomes the test split, by a fixed key. Default: 0.2, or 0 if there are
            split folders.
        skip_broken: True to leave out files that cannot be read. Default: an error lists them.
        memory_limit: in MiB; if the decoded images take more memory, they are written to a file once and read from
            there, with the same results. Default: a quarter of the memory.
        cache: the folder for such files. Default: "decoded" in the data directory.
        bits: for images of 16 bits, how many bits hold values, 8 to 16: white is 2^bits - 1. Default: 16, and an image
            whose top two bits are empty is then an error.

    Raises:
        UserError: the folder does not exist, files are not images, sizes differ, or a class or a split has no images.
    """
    form = PixelFormat.of(channels, size, bits)
    # The cache belongs to a path, so one folder must not have two spellings.
    root = user_path(path, "data.path").resolve()
    # Before decoding: images that turn out to be broken do not change which of the others are test images.
    tree = _with_test(read_tree(root), test)
    files = [file for listed in tree.splits.values() for file in listed.files]
    kept = data_dir / "decoded" if cache is None else user_path(cache, "data.cache")
    decoded = read_pixels(files, root, form, memory_limit=memory_limit, cache=kept)
    if not skip_broken:
        refuse_broken(decoded.broken, files, root)
    splits = _splits(tree, decoded)
    return Dataset(
        "folder",
        splits["train"],
        splits.get("test"),
        Labels(len(tree.classes), tree.classes),
        validation=splits.get("validation"),
    )


def _with_test(tree: Tree, share: float | None) -> Tree:
    """Return the tree with a test split taken from training, unless there is a test split or the user wants none."""
    if not (share := test_share(share, tree.splits)):
        return tree
    train = tree.splits["train"]
    chosen = [_take(train, index) for index in hold_out(torch.tensor(train.labels), share)]
    return tree._replace(splits={**tree.splits, "train": chosen[0], "test": chosen[1]})


def _take(listed: SplitFiles, index: Tensor) -> SplitFiles:
    """Return the files at some positions."""
    positions = index.tolist()
    return SplitFiles([listed.files[i] for i in positions], [listed.labels[i] for i in positions])


def _splits(tree: Tree, decoded: Decoded) -> dict[str, Split]:
    """Return the images that were read as splits.

    Raises:
        UserError: a split, or a class in training, has no image that can be read.
    """
    # `decoded.x` holds the images of all splits in one tensor, without the broken ones: positions must be counted anew.
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
        # The images of a split are neighbours, so a slice needs no copy.
        splits[name] = whole.slice(int(index[0]), len(index))
    left = set(splits["train"].y.tolist())
    if lost := [name for label, name in enumerate(tree.classes) if label not in left]:
        raise UserError(f"data.skip_broken: without broken images, {', '.join(lost)} has none left for training")
    return splits
