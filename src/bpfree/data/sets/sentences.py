"""Texts with a class each, as tokens that are filled up to one length: the sentences of SST-2.

SST-2: Socher et al. 2013, "Recursive Deep Models for Semantic Compositionality Over a Sentiment Treebank",
https://nlp.stanford.edu/sentiment, in the form of GLUE (Wang et al. 2018, https://gluebenchmark.com): phrases and
sentences of film reviews, positive or negative. The test of GLUE has no labels, so the 872 sentences of its validation
split are the test here, as in most papers. Address and hash of the archive are those of torchtext
(torchtext/datasets/sst2.py, BSD), hashes of the files those of PaddleNLP (Apache).
"""

from collections.abc import Iterator
from pathlib import Path

import torch

from bpfree.data.dataset import Dataset
from bpfree.data.files.download import Source, find
from bpfree.data.labels import Labels
from bpfree.data.split import Split
from bpfree.data.vocabulary import BYTES, Vocabulary
from bpfree.disk.paths import open_regular
from bpfree.errors import UserError, check_positive

SST2 = Source(
    folders=("sst2", "SST-2"),
    mirrors=("https://dl.fbaipublicfiles.com/glue/data/",),
    hashes={
        "SST-2.zip": "md5:9f81648d4199384278b86e315dac217c",
        "train.tsv": "md5:da409a0a939379ed32a470bc0f7fe99a",
        "dev.tsv": "md5:268856b487b2a31a28c0a93daaff7288",
    },
    archive="SST-2.zip",
    members=("SST-2/train.tsv", "SST-2/dev.tsv"),
)
NAMES = ("negative", "positive")


def sst2(data_dir: Path, *, context: int = 256, vocabulary: int | None = None) -> Dataset:
    """Phrases of film reviews, positive or negative, as tokens (SST-2 of GLUE). In DATA/sst2, or downloaded to there.

    A sample is T tokens. Token 0 fills short texts at their end; the tokens of the text are numbered from 1 on. So a
    net needs `padding=0` and a vocabulary of one token more.

    Args:
        data_dir: the directory of all data sets.
        context: T. Tokens beyond it are cut off.
        vocabulary: the number of tokens of byte-pair encoding, which is learned from the training texts. Default:
            tokens are the 256 bytes.

    Raises:
        UserError: the files cannot be had or are damaged, or the package tokenizers is missing.
    """
    check_positive("data.context", context)
    parts = [list(_lines(find("sst2", SST2, file, data_dir))) for file in ("train.tsv", "dev.tsv")]
    content = b"\n".join(text for text, _ in parts[0])
    tokens = Vocabulary(BYTES) if vocabulary is None else Vocabulary.train(content, vocabulary, "sst2")
    train, test = (
        Split(tokens.padded([text for text, _ in part], context), torch.tensor([label for _, label in part]))
        for part in parts
    )
    return Dataset("sst2", train, test, Labels(len(NAMES), NAMES, vocabulary=tokens.text))


def _lines(file: Path) -> Iterator[tuple[bytes, int]]:
    """Yield the text and the label of each line behind the first; a text may hold no tab.

    Raises:
        UserError: a line is something else.
    """
    with open_regular(file) as opened:
        content = opened.read()
    for number, line in enumerate(content.splitlines()[1:], start=2):
        text, _, label = line.rpartition(b"\t")
        if label not in (b"0", b"1") or b"\t" in text:
            raise UserError(f"{file}: found {line[:60]!r} in line {number}, allowed: a text, a tab, and 0 or 1")
        yield text.strip(), int(label)
