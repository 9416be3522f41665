"""The table `FACTS`: what is known about each data set that has a name, beside the table `DATASETS` of readers."""

from typing import NamedTuple

from bpfree.data.files.download import Source
from bpfree.data.sets.cifar import LAYOUTS
from bpfree.data.sets.mnist import EMNIST, FASHION_MNIST, KMNIST, MNIST
from bpfree.data.sets.photographs import CALTECH256, EUROSAT
from bpfree.data.sets.sentences import SST2
from bpfree.data.sets.stl10 import STL10
from bpfree.data.sets.svhn import EXTRA, SVHN
from bpfree.data.sets.text import ENWIK8, NAMED_SO, TEXT8, TINYSHAKESPEARE, WIKITEXT103


class Published(NamedTuple):
    """The place where a data set is published, and the conditions of its use.

    Attributes:
        megabytes: the size of the download, about; 0 for data that come with the package or are generated.
        licence: the licence, in the words of the authors or of the publisher.
        page: the address of its page.
        sources: where its files are; one of them suffices.
        further: files that only options ask for.
    """

    megabytes: int
    licence: str
    page: str
    sources: tuple[Source, ...] = ()
    further: tuple[Source, ...] = ()


class Facts(NamedTuple):
    """The facts about a data set as its reader gives it without options.

    Attributes:
        train: the number of samples for training, from which a validation split may be taken.
        test: the number of samples for the final evaluation.
        classes: C; 0 if labels are numbers.
        shape: the shape of a sample, [channels, height, width] for an image, [tokens] for a text.
        published: where it is published.
    """

    train: int
    test: int
    classes: int
    shape: tuple[int, ...]
    published: Published


_DIGIT = (1, 28, 28)
_COLOUR = (3, 32, 32)
_CIFAR = "https://www.cs.toronto.edu/~kriz/cifar.html"
_DIGITS = "https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits"
_DIABETES = "https://www4.stat.ncsu.edu/~boos/var.select/diabetes.html"
_LORENZ = "https://doi.org/10.1175/1520-0469(1963)020<0130:DNF>2.0.CO;2"
_FASHION_MNIST = "https://github.com/zalandoresearch/fashion-mnist"
_KMNIST = "http://codh.rois.ac.jp/kmnist/index.html.en"
_EMNIST = "https://www.nist.gov/itl/products-and-services/emnist-dataset"
_SVHN = "http://ufldl.stanford.edu/housenumbers/"
_CALTECH256 = "https://data.caltech.edu/records/nyy15-4j048"
_STL10 = "https://cs.stanford.edu/~acoates/stl10/"
_TINYSHAKESPEARE = "https://github.com/karpathy/char-rnn"
_MAHONEY = "http://mattmahoney.net/dc/textdata.html"
_WIKITEXT = "https://huggingface.co/datasets/Salesforce/wikitext"
_NONE = "none stated"


def _cifar(name: str, megabytes: int) -> Published:
    layout = LAYOUTS[name]
    return Published(megabytes, _NONE, _CIFAR, (layout.source, layout.pickled))


FACTS: dict[str, Facts] = {
    "digits": Facts(1_437, 360, 10, (1, 8, 8), Published(0, "CC BY 4.0", _DIGITS)),
    "diabetes": Facts(354, 88, 0, (10,), Published(0, _NONE, _DIABETES)),
    "lorenz": Facts(512, 256, 0, (100, 3), Published(0, "none needed", _LORENZ)),
    "mnist": Facts(
        60_000, 10_000, 10, _DIGIT, Published(12, "CC BY-SA 3.0", "http://yann.lecun.com/exdb/mnist/", (MNIST,))
    ),
    "fashion_mnist": Facts(60_000, 10_000, 10, _DIGIT, Published(31, "MIT", _FASHION_MNIST, (FASHION_MNIST,))),
    "kmnist": Facts(60_000, 10_000, 10, _DIGIT, Published(21, "CC BY-SA 4.0", _KMNIST, (KMNIST,))),
    "emnist": Facts(112_800, 18_800, 47, _DIGIT, Published(562, _NONE, _EMNIST, (EMNIST,))),
    "cifar10": Facts(50_000, 10_000, 10, _COLOUR, _cifar("cifar10", 170)),
    "cifar100": Facts(50_000, 10_000, 100, _COLOUR, _cifar("cifar100", 169)),
    "svhn": Facts(73_257, 26_032, 10, _COLOUR, Published(246, "non-commercial use", _SVHN, (SVHN,), (EXTRA,))),
    "eurosat": Facts(
        21_600, 5_400, 10, (3, 64, 64), Published(94, "MIT", "https://github.com/phelber/EuroSAT", (EUROSAT,))
    ),
    "caltech256": Facts(23_824, 5_956, 256, (3, 64, 64), Published(1_184, "CC BY 4.0", _CALTECH256, (CALTECH256,))),
    "stl10": Facts(5_000, 8_000, 10, (3, 96, 96), Published(2_640, _NONE, _STL10, (STL10,))),
    "tinyshakespeare": Facts(
        7_842, 435, 256, (128,), Published(1, "public domain", _TINYSHAKESPEARE, (TINYSHAKESPEARE, NAMED_SO))
    ),
    "text8": Facts(703_124, 39_062, 256, (128,), Published(31, "GFDL", _MAHONEY, (TEXT8,))),
    "enwik8": Facts(703_124, 39_062, 256, (128,), Published(36, "GFDL", _MAHONEY, (ENWIK8,))),
    "wikitext103": Facts(4_223_188, 10_082, 256, (128,), Published(192, "CC BY-SA 3.0", _WIKITEXT, (WIKITEXT103,))),
    "sst2": Facts(67_349, 872, 2, (256,), Published(7, _NONE, "https://nlp.stanford.edu/sentiment/", (SST2,))),
}
"""Facts by name: the data sets of `DATASETS` that are not the user's own files."""
