"""Texts, as tokens: the user's own files, and four published texts.

tinyshakespeare: 1.1 MB of Shakespeare, from https://github.com/karpathy/char-rnn. text8 and enwik8: 100 million bytes
of the English Wikipedia of 2006, text8 as letters and spaces alone. They are from http://mattmahoney.net/dc/textdata.html,
which gives the md5 of the texts. It gives no hash of the archives; those below are in many public repositories.

wikitext103: 541 million bytes of good and featured articles of the English Wikipedia, with spaces around each mark
(Merity et al. 2017, "Pointer Sentinel Mixture Models", https://arxiv.org/abs/1609.07843). The address in the paper is
gone. The first mirror is the first author's. The hash of the archive is that of several libraries, those of the files
are GluonNLP's (gluonnlp/data/corpora/wikitext.py, Apache).
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict, Unpack

import torch

from bpfree.data.dataset import Dataset
from bpfree.data.files.download import Source, existing_file, find
from bpfree.data.files.rows import Rows
from bpfree.data.labels import Labels
from bpfree.data.split import Split
from bpfree.data.texts import SPLITS, Windows, divided, encoded
from bpfree.data.vocabulary import Vocabulary
from bpfree.disk.paths import open_regular, user_path
from bpfree.errors import UserError, check_positive

SHARES = (0.9, 0.05, 0.05)
"""The parts of a text for training, validation and test, by position, as is usual for text8 and enwik8."""

TINYSHAKESPEARE = Source(
    folders=("tinyshakespeare",),
    mirrors=("https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/",),
    hashes={"input.txt": "md5:6fb458f1232090904fb40fe944165e91"},
)
NAMED_SO = Source(  # the same file as people keep it
    folders=("tinyshakespeare", "text", ""),
    mirrors=(),
    hashes={"tinyshakespeare.txt": "md5:6fb458f1232090904fb40fe944165e91"},
)
_MAHONEY = ("http://mattmahoney.net/dc/", "https://www.mattmahoney.net/dc/")
TEXT8 = Source(
    folders=("text8", ""),
    mirrors=_MAHONEY,
    hashes={
        "text8.zip": "sha256:a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232",
        "text8": "md5:3bea1919949baf155f99411df5fada7e",
    },
    archive="text8.zip",
    members=("text8",),
)
ENWIK8 = Source(
    folders=("enwik8", ""),
    mirrors=_MAHONEY,
    hashes={
        "enwik8.zip": "sha256:547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
        "enwik8": "md5:a1fa5ffddb56f4953e226637dabbb36a",
    },
    archive="enwik8.zip",
    members=("enwik8",),
)
WIKITEXT103 = Source(
    folders=("wikitext103", "wikitext-103-raw"),
    mirrors=(
        "https://wikitext.smerity.com/",
        "https://huggingface.co/datasets/mattdangerw/wikitext-103-raw/resolve/3555105b17ae31cc619a136fac72dbe2865c3738/",
    ),
    hashes={
        "wikitext-103-raw-v1.zip": "sha256:91c00ae287f0d699e18605c84afc9e45c192bc6b7797ff8837e5474655a33794",
        "wiki.train.raw": "sha1:3d06627c15e834408cfee91293f862c11c1cc9ef",
        "wiki.valid.raw": "sha1:db78d4db83700cba1b1bf4a9381087043db2876d",
        "wiki.test.raw": "sha1:6f1fe2054a940eebfc76b284b09680763b37f5ea",
    },
    archive="wikitext-103-raw-v1.zip",
    members=tuple(f"wikitext-103-raw/wiki.{split}.raw" for split in ("train", "valid", "test")),
)


class TokenOptions(TypedDict, total=False):
    """The options of every text; see `text` for their meaning and their defaults."""

    context: int
    vocabulary: int | None
    cache: Path | None


def text(
    data_dir: Path,
    *,
    path: Path,
    context: int = 128,
    vocabulary: int | None = None,
    pattern: str = "*.txt",
    shares: Sequence[float] = SHARES,
    cache: Path | None = None,
) -> Dataset:
    """Your own text, for the task `language`: at data.path a file, or a folder of text files.

    The files of a folder are joined in the order of their paths, with an empty line between them. Training, validation
    and test are parts of the text by position. Samples are windows of T tokens, one behind the other; labels are the
    next tokens. A rest that does not fill a window is left out.

    Args:
        data_dir: the directory of all data sets, for the tokens.
        path: the file, or a folder. A relative path counts from the current folder.
        context: T, the number of tokens in a window.
        vocabulary: the number of tokens of byte-pair encoding, which is learned from the training part. Default: tokens
            are the 256 bytes.
        pattern: the names of the files in a folder and its subfolders, such as "*.py".
        shares: the parts for training, validation and test; their sum is 1.
        cache: the folder for the tokens. Default: "tokens" in the data directory.

    Raises:
        UserError: the package tokenizers is not installed, there are no such files, a part is shorter than a window, or
            with a vocabulary the text is not UTF-8.
    """
    content = b"\n\n".join(_content(file) for file in _files(path, pattern))
    tokens: TokenOptions = {"context": context, "vocabulary": vocabulary, "cache": cache}
    _check_shares(shares)
    return _windows("text", path, divided(content, shares), data_dir, **tokens)


def tinyshakespeare(data_dir: Path, **tokens: Unpack[TokenOptions]) -> Dataset:
    """Plays of Shakespeare, 1.1 MB, for the task `language`; see `text` for the options."""
    file = existing_file(NAMED_SO.folders, "tinyshakespeare.txt", data_dir) or find(
        "tinyshakespeare", TINYSHAKESPEARE, "input.txt", data_dir
    )
    return _windows("tinyshakespeare", file, divided(_content(file), SHARES), data_dir, **tokens)


def text8(data_dir: Path, **tokens: Unpack[TokenOptions]) -> Dataset:
    """English Wikipedia as letters and spaces alone, 100 MB, for the task `language`; see `text` for the options."""
    file = find("text8", TEXT8, "text8", data_dir)
    return _windows("text8", file, divided(_content(file), SHARES), data_dir, **tokens)


def enwik8(data_dir: Path, **tokens: Unpack[TokenOptions]) -> Dataset:
    """English Wikipedia with its marks, 100 MB, for the task `language`; see `text` for the options."""
    file = find("enwik8", ENWIK8, "enwik8", data_dir)
    return _windows("enwik8", file, divided(_content(file), SHARES), data_dir, **tokens)


def wikitext103(data_dir: Path, **tokens: Unpack[TokenOptions]) -> Dataset:
    """Good articles of Wikipedia, 541 MB, for the task `language`; see `text` for the options. Its splits are its own.

    The files are those with all words ("raw"). Whole articles are in one split only.
    """
    files = [find("wikitext103", WIKITEXT103, Path(member).name, data_dir) for member in WIKITEXT103.members]
    return _windows("wikitext103", files[0], [_content(file) for file in files], data_dir, **tokens)


def _files(path: Path, pattern: str) -> list[Path]:
    """Return the files at a path, in the order of their paths."""
    place = user_path(path, "data.path")
    if not place.is_dir():
        return [place]
    found = sorted(file for file in place.rglob(pattern) if file.is_file() and not _is_hidden(file, place))
    if not found:
        raise UserError(
            f"data.path: found no files {pattern} in {place}, allowed: a file, or a folder of text files. data.pattern "
            'says how they are called, such as "*.md"'
        )
    return found


def _is_hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _content(file: Path) -> bytes:
    try:
        with open_regular(file) as opened:
            return opened.read()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error})") from error


def _windows(
    name: str,
    path: Path,
    parts: Sequence[bytes],
    data_dir: Path,
    *,
    context: int = 128,
    vocabulary: int | None = None,
    cache: Path | None = None,
) -> Dataset:
    """Return the windows of a text, whose parts are for training, validation and test, as a data set."""
    check_positive("data.context", context)
    kept = data_dir / "tokens" if cache is None else user_path(cache, "data.cache")
    made = encoded(parts, vocabulary, kept, name)
    if "train" not in made.splits:
        raise UserError(f"{path}: found no text for training, allowed: a text that is not empty, and a share above 0")
    splits = {}
    for split, tokens in made.splits.items():
        count = (len(tokens) - 1) // context  # the label of the last token of a window is the token behind it
        if count < 1:
            raise UserError(
                f"{path}: its part for {split} has {len(tokens):,} tokens, allowed with data.context={context}: at "
                f"least {context + 1}. Set a smaller data.context, or give a longer text"
            )
        x, y = (Rows(Windows(path, tokens, context, ahead), torch.arange(count)) for ahead in (0, 1))
        splits[split] = Split(x, y)
    labels = Labels(Vocabulary(made.vocabulary).size, answers="tokens", vocabulary=made.vocabulary)
    return Dataset(name, splits["train"], splits.get("test"), labels, validation=splits.get("validation"))


def _check_shares(shares: Sequence[float]) -> None:
    if len(shares) != len(SPLITS) or not all(share >= 0 for share in shares) or not math.isclose(sum(shares), 1):
        raise UserError(
            f"data.shares: found {list(shares)}, allowed: three numbers from 0 on with the sum 1, for "
            f"{', '.join(SPLITS)}"
        )
