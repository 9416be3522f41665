"""EuroSAT and Caltech-256: archives with a folder of JPEG files for each class, and no official split.

The test split is a fifth of the images, chosen by a fixed shuffle, so training never sees a test image, whatever the
seed.
"""

from pathlib import Path

from bpfree.data.dataset import Dataset
from bpfree.data.files.class_folders import Images, read_published
from bpfree.data.files.download import Source, find
from bpfree.data.labels import Labels
from bpfree.data.split import Split
from bpfree.errors import UserError
from bpfree.noise import Noise

SMALLEST, LARGEST = 8, 512
# Hash and first mirror are those of torchvision's source (torchvision/datasets/eurosat.py, BSD). On the second mirror
# the authors published the data set first.
EUROSAT = Source(
    folders=("eurosat", "EuroSAT", ""),
    mirrors=(
        "https://huggingface.co/datasets/torchgeo/eurosat/resolve/c877bcd43f099cd0196738f714544e355477f3fd/",
        "http://madm.dfki.de/files/sentinel/",
    ),
    hashes={"EuroSAT.zip": "md5:c8fa014336c82ac7804f0398fcb19387"},
)
# Address and hash are those of the record at https://data.caltech.edu/records/nyy15-4j048.
CALTECH256 = Source(
    folders=("caltech256", "Caltech256", ""),
    mirrors=("https://data.caltech.edu/records/nyy15-4j048/files/",),
    hashes={"256_ObjectCategories.tar": "md5:67b4f42ca05d46448c6bb8ecd2220f6d"},
)
_CLUTTER = "257.clutter"


def eurosat(data_dir: Path) -> Dataset:
    """Land use in satellite images, 64x64 pixels (Helber et al. 2019). In DATA/eurosat, or downloaded to there.

    Args:
        data_dir: the directory of all data sets.

    Raises:
        UserError: a file cannot be downloaded, or is damaged.
    """
    images = _read("eurosat", EUROSAT, data_dir, root="2750", size=64)
    _check_classes("eurosat", images, 10)
    return _divided("eurosat", images, 10)


def caltech256(data_dir: Path, *, size: int = 64, clutter: bool = False) -> Dataset:
    """Photographs of 256 kinds of objects (Griffin, Holub, Perona 2007). Read from DATA/caltech256, or downloaded.

    Args:
        data_dir: the directory of all data sets.
        size: height and width in pixels. A photograph is scaled until it fills them, and the rest is cut off.
        clutter: True to include class 257, images that show none of the objects. By default it is left out, because
            its images have nothing in common.

    Raises:
        UserError: the size is out of range, or the archive cannot be had or has other classes.
    """
    if not SMALLEST <= size <= LARGEST:
        raise UserError(f"data.size: found {size}, allowed: {SMALLEST} to {LARGEST} pixels")
    images = _read("caltech256", CALTECH256, data_dir, root="256_ObjectCategories", size=size)
    _check_classes("caltech256", images, 257)
    # `_divided` leaves out the last class, so this must be the one without objects.
    if images.classes[-1] != _CLUTTER:
        raise UserError(f"caltech256: found '{images.classes[-1]}' as its last class, allowed: {_CLUTTER}")
    return _divided("caltech256", images, 257 if clutter else 256)


def _read(name: str, source: Source, data_dir: Path, *, root: str, size: int) -> Images:
    ((file, known_hash),) = source.hashes.items()
    return read_published(find(name, source, file, data_dir), known_hash, root, size=(size, size))


def _check_classes(name: str, images: Images, expected: int) -> None:
    if len(images.classes) != expected:
        raise UserError(f"{name}: found {len(images.classes)} folders of images, allowed: {expected}. Fetch it again")


def _divided(name: str, images: Images, classes: int) -> Dataset:
    """Return the images of the first classes, divided into training and test."""
    whole = Split(images.x, images.y)
    index = (images.y < classes).nonzero().flatten()
    order = Noise(0).fold(name).permutation(len(index))
    fifth = len(index) // 5
    test, train = index[order[:fifth].sort().values], index[order[fifth:].sort().values]
    names = tuple(
        folder.lstrip("0123456789.") for folder in images.classes[:classes]
    )  # Caltech-256 has numbers in front of its names
    return Dataset(name, whole.take(train), whole.take(test), Labels(classes, names))
