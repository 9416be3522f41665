"""What is known of each data set that can be had by name: `FACTS`, the table beside `DATASETS`."""

from typing import NamedTuple

from bpfree.data.files.download import Source
from bpfree.data.sets.cifar import LAYOUTS
from bpfree.data.sets.mnist import EMNIST, FASHION_MNIST, KMNIST, MNIST
from bpfree.data.sets.photographs import CALTECH256, EUROSAT
from bpfree.data.sets.stl10 import STL10
from bpfree.data.sets.svhn import EXTRA, SVHN


class Facts(NamedTuple):
    """Of a data set as its reader gives it without options.

    Attributes:
        train: samples for training, of which a validation split may be carved.
        test: samples for the final evaluation.
        classes: C; 0 where labels are numbers.
        shape: of a sample, [channels, height, width] of an image.
        megabytes: to download, about; 0 for what comes with the package or is generated.
        licence: as its authors or those who publish it state it.
        origin: its page.
        sources: where its files are; one of them suffices.
        further: files that options ask for.
    """

    train: int
    test: int
    classes: int
    shape: tuple[int, ...]
    megabytes: int
    licence: str
    origin: str
    sources: tuple[Source, ...] = ()
    further: tuple[Source, ...] = ()


_DIGIT = (1, 28, 28)
_CIFAR = "https://www.cs.toronto.edu/~kriz/cifar.html"
_NONE = "none stated"

FACTS: dict[str, Facts] = {
    "digits": Facts(
        1_437,
        360,
        10,
        (1, 8, 8),
        0,
        "CC BY 4.0",
        "https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
    ),
    "diabetes": Facts(354, 88, 0, (10,), 0, _NONE, "https://www4.stat.ncsu.edu/~boos/var.select/diabetes.html"),
    "lorenz": Facts(
        512, 256, 0, (100, 3), 0, "none needed", "https://doi.org/10.1175/1520-0469(1963)020<0130:DNF>2.0.CO;2"
    ),
    "mnist": Facts(60_000, 10_000, 10, _DIGIT, 12, "CC BY-SA 3.0", "http://yann.lecun.com/exdb/mnist/", (MNIST,)),
    "fashion_mnist": Facts(
        60_000, 10_000, 10, _DIGIT, 31, "MIT", "https://github.com/zalandoresearch/fashion-mnist", (FASHION_MNIST,)
    ),
    "kmnist": Facts(
        60_000, 10_000, 10, _DIGIT, 21, "CC BY-SA 4.0", "http://codh.rois.ac.jp/kmnist/index.html.en", (KMNIST,)
    ),
    "emnist": Facts(
        112_800,
        18_800,
        47,
        _DIGIT,
        562,
        _NONE,
        "https://www.nist.gov/itl/products-and-services/emnist-dataset",
        (EMNIST,),
    ),
    "cifar10": Facts(
        50_000,
        10_000,
        10,
        (3, 32, 32),
        170,
        _NONE,
        _CIFAR,
        (LAYOUTS["cifar10"].source, LAYOUTS["cifar10"].pickled),
    ),
    "cifar100": Facts(
        50_000,
        10_000,
        100,
        (3, 32, 32),
        169,
        _NONE,
        _CIFAR,
        (LAYOUTS["cifar100"].source, LAYOUTS["cifar100"].pickled),
    ),
    "svhn": Facts(
        73_257,
        26_032,
        10,
        (3, 32, 32),
        246,
        "non-commercial use",
        "http://ufldl.stanford.edu/housenumbers/",
        (SVHN,),
        (EXTRA,),
    ),
    "eurosat": Facts(21_600, 5_400, 10, (3, 64, 64), 94, "MIT", "https://github.com/phelber/EuroSAT", (EUROSAT,)),
    "caltech256": Facts(
        23_824,
        5_956,
        256,
        (3, 64, 64),
        1_184,
        "CC BY 4.0",
        "https://data.caltech.edu/records/nyy15-4j048",
        (CALTECH256,),
    ),
    "stl10": Facts(5_000, 8_000, 10, (3, 96, 96), 2_640, _NONE, "https://cs.stanford.edu/~acoates/stl10/", (STL10,)),
}
