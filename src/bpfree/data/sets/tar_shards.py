"""Read the user's own tars in the layout of WebDataset. Samples stay in the tars until a batch needs them."""

from pathlib import Path

from bpfree.data.dataset import Dataset
from bpfree.data.files.pixels import Channels, PixelFormat
from bpfree.data.shards.assemble import ShardSplit, dataset_of
from bpfree.data.shards.decoders import Decoder
from bpfree.data.shards.files import check_window, files_of_splits
from bpfree.data.shards.tar_index import Wanted, read_index
from bpfree.data.shards.tar_rows import TarRows
from bpfree.data.shards.tar_samples import EXTRA
from bpfree.disk.paths import user_path


def webdataset(
    data_dir: Path,
    *,
    path: Path,
    validation_path: Path | None = None,
    test_path: Path | None = None,
    sample: str | None = None,
    label: str | None = None,
    key: str = "label",
    values: bool = False,
    size: int | list[int] | None = None,
    channels: Channels = "auto",
    bits: int | None = None,
    test: float | None = None,
    window: int = 10_000,
    cache: Path | None = None,
) -> Dataset:
    """Your own tars in the layout of WebDataset: at data.path a pattern with braces, a folder or one tar.

    Samples stay in the tars, and are decoded when a batch needs them. So a data set may be larger than the memory.

    Args:
        data_dir: the directory of all data sets, for the index.
        path: the tars, such as shards/train-{000..146}.tar. A relative path counts from the current folder.
        validation_path: the tars of a validation split.
        test_path: the tars of a test split.
        sample: the end of the name of the member that is the sample, such as "jpg" or "left.png". Default: the one
            member that is an image or a .npy.
        label: the end of the name of the member with the label. Default: "cls", or "json" if there is none.
        key: where the label is a JSON object, the name under which it lies there.
        values: True if labels are numbers to be predicted (task regress), and not classes.
        size: the size in pixels that images are scaled to, H = W, or [H, W]. Default: that of the first image, and an
            image of another size is an error.
        channels: 1 (grey), 3 (colour), or "auto": as the first image.
        bits: for images of 16 bits, how many bits hold values, 8 to 16; see the data set `folder`.
        test: the share of the samples that becomes the test split, by a fixed key. Default: 0.2, or 0 if there are
            other splits.
        window: the number of samples that are mixed at a time. A larger one shuffles better.
        cache: the folder for the index of the tars. Default: "indexes" in the data directory.

    Raises:
        UserError: the package webdataset is not installed, there are no such tars, one is damaged or compressed, or a
            sample has no image or label.
    """
    check_window(window)
    form = PixelFormat.of(channels, size, bits)
    wanted = Wanted(sample, label, key, values)
    kept = data_dir / "indexes" if cache is None else user_path(cache, "data.cache")
    read: dict[str, ShardSplit] = {}
    decoder: Decoder | None = None
    for split, tars in files_of_splits(path, validation_path, test_path, ".tar", EXTRA):
        index = read_index(tars, wanted, kept, f"{split}-{tars[0].stem}")
        source = TarRows(tars, index, window, decoder=decoder, form=form)
        decoder = source.decoder  # samples of all splits have the form of the first training sample
        read[split] = ShardSplit(source, index.y, index.names)
    return dataset_of("webdataset", read, test)
