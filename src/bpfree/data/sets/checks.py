"""Compare the files in the data directory with the published ones: hashes, format and counts. No download happens."""

import gzip
import hashlib
import zlib
from pathlib import Path
from typing import NamedTuple

from bpfree.data.files.download import Source, existing_file, is_here, offline
from bpfree.data.files.hashes import is_known
from bpfree.data.sets.facts import FACTS
from bpfree.data.sets.readers import DATASETS
from bpfree.errors import UserError

_BLOCK = 1 << 20


class Findings(NamedTuple):
    """The result of `check`.

    Attributes:
        published: files that are the published ones, by their hashes.
        problems: a message for each defect; empty if the data set is whole.
    """

    published: list[Path]
    problems: list[str]


def is_readable(name: str, data_dir: Path) -> bool:
    """Return True if the data set can be read without a download.

    Args:
        name: of the data set, a key of `FACTS`.
        data_dir: the directory of all data sets.
    """
    sources = FACTS[name].published.sources
    return not sources or any(is_here(source, data_dir) for source in sources)


def check(name: str, data_dir: Path) -> Findings:
    """Compare each file of a data set with its known hash, then read the whole data set and count its samples.

    Args:
        name: of the data set, a key of `FACTS`.
        data_dir: the directory of all data sets.
    """
    facts = FACTS[name]
    findings = Findings([], [])
    for source in facts.published.sources + facts.published.further:
        for file in source.hashes:
            _check_file(source, file, data_dir, findings)
    try:
        with offline():
            dataset = DATASETS[name](data_dir)
    except UserError as error:
        findings.problems.append(str(error))
        return findings
    assert dataset.test is not None
    for what, found, expected in (
        ("training samples", len(dataset.train.y), facts.train),
        ("test samples", len(dataset.test.y), facts.test),
        ("classes", dataset.classes, facts.classes),
        ("samples of the shape", tuple(dataset.train.tensor.shape[1:]), facts.shape),
    ):
        if found != expected:
            findings.problems.append(f"data set '{name}': found {found} {what}, allowed: {expected}. Fetch it again")
    return findings


def _check_file(source: Source, file: str, data_dir: Path, findings: Findings) -> None:
    """Add a file to the published ones or to the problems; a file that is not on the disk is neither."""
    path = existing_file(("", *source.folders), file, data_dir)
    if path is None:
        return
    known_hash, content = source.hashes[file], source.contents.get(file.removesuffix(".gz"))
    is_published = path.name == file and is_known(path, known_hash)
    # People zip files anew or keep them unzipped. The hash of the content still identifies the file.
    if is_published or (content is not None and _md5_unzipped(path) == content):
        findings.published.append(path)
    # An unzipped file without a known hash of its content cannot be judged, so it is not listed at all.
    elif path.name == file or content is not None:
        findings.problems.append(f"{path}: its hash is not that of the published file. Delete it and fetch it again")


def _md5_unzipped(path: Path) -> str:
    """Return the hash of a file's content, without gzip, as "md5:..."; "damaged" if it cannot be unzipped."""
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        return "damaged"
    return f"md5:{digest.hexdigest()}"
