"""Read the user's own Parquet files. Samples stay in the files until a batch needs them."""

from collections.abc import Sequence
from pathlib import Path

from bpfree.data.columns import Column
from bpfree.data.dataset import Dataset
from bpfree.data.files.pixels import Channels, PixelFormat
from bpfree.data.shards.assemble import ShardSplit, dataset_of
from bpfree.data.shards.files import check_window, files_of_splits
from bpfree.data.shards.parquet_cells import Cells, TableCells, cells_of
from bpfree.data.shards.parquet_files import EXTRA, ParquetFiles
from bpfree.data.shards.parquet_labels import class_names, read_classes, read_numbers
from bpfree.data.shards.parquet_rows import ParquetRows
from bpfree.errors import unknown


def parquet(
    data_dir: Path,
    *,
    path: Path,
    label: str = "label",
    validation_path: Path | None = None,
    test_path: Path | None = None,
    columns: Sequence[str] = (),
    ignore: Sequence[str] = (),
    values: bool = False,
    size: int | list[int] | None = None,
    channels: Channels = "auto",
    bits: int | None = None,
    test: float | None = None,
    window: int = 10_000,
) -> Dataset:
    """Your own Parquet files: at data.path a file, a folder or a pattern; one column is the label.

    The samples are a column of images (encoded, also in the form of Hugging Face), a column of lists of numbers, or
    several columns of numbers, which are standardised. They stay in the files. So a data set may be larger than the
    memory.

    Args:
        data_dir: not used.
        path: the files, such as data/train-*.parquet. A relative path counts from the current folder.
        label: the column to predict.
        validation_path: the files of a validation split.
        test_path: the files of a test split.
        columns: the columns that become samples. Default: all others.
        ignore: columns to leave out.
        values: True if labels are numbers to be predicted (task regress), and not classes.
        size: the size in pixels that images are scaled to, H = W, or [H, W]. Default: that of the first image, and an
            image of another size is an error.
        channels: 1 (grey), 3 (colour), or "auto": as the first image.
        bits: for images of 16 bits, how many bits hold values, 8 to 16; see the data set `folder`.
        test: the share of the samples that becomes the test split, by a fixed key. Default: 0.2, or 0 if there are
            other splits.
        window: the number of samples that are mixed at a time. So many are kept in memory, and a larger one shuffles
            better.

    Raises:
        UserError: the package pyarrow is not installed, there are no such files, one is damaged, a column does not
            exist or is of a type that cannot be learned from, or values are missing.
    """
    check_window(window)
    form = PixelFormat.of(channels, size, bits)
    read: dict[str, ShardSplit] = {}
    train: ParquetFiles | None = None
    cells: Cells | None = None
    names: tuple[str, ...] | None = None
    for split, paths in files_of_splits(path, validation_path, test_path, ".parquet", EXTRA):
        files = ParquetFiles(paths, train)
        train = train or files
        chosen = _chosen(train, label, columns, ignore)
        files.check([label, *chosen])
        y, found = (read_numbers(files, label), ()) if values else read_classes(files, label)
        if cells is None:
            names = None if values else class_names(files, label)
            cells = cells_of(files, chosen, form)
        read[split] = ShardSplit(ParquetRows(files, cells, window), y, found)
    features = tuple(map(Column, cells.columns)) if isinstance(cells, TableCells) else None
    return dataset_of("parquet", read, test, classes=names, columns=features)


def _chosen(files: ParquetFiles, label: str, columns: Sequence[str], ignore: Sequence[str]) -> list[str]:
    """Return the columns that become samples, or raise UserError for a name that is not a column."""
    for key, names in (("label", [label]), ("columns", columns), ("ignore", ignore)):
        for name in names:
            if name not in files.schema.names:
                raise unknown(f"column in data.{key}", name, files.schema.names)
    return [name for name in columns or files.schema.names if name != label and name not in ignore]
