"""Is what lies in the data directory what was published? Hashes, format and counts, and nothing is downloaded."""

import gzip
import hashlib
import zlib
from pathlib import Path
from typing import NamedTuple

from bpfree.data import DATASETS, FACTS
from bpfree.data.files.download import Source, is_here, lying, offline
from bpfree.data.files.hashes import is_known
from bpfree.errors import UserError


class Findings(NamedTuple):
    """What `check` saw.

    Attributes:
        published: files that are those that were published, by their hashes.
        problems: what is wrong; empty if the data set is whole.
    """

    published: list[Path]
    problems: list[str]


def here(name: str, data_dir: Path) -> bool:
    """Whether the data set can be read without downloading anything."""
    sources = FACTS[name].sources
    return not sources or any(is_here(source, data_dir) for source in sources)


def check(name: str, data_dir: Path) -> Findings:
    """Compare each of its files that is there with its known hash, then read it all and count."""
    facts = FACTS[name]
    findings = Findings([], [])
    for source in facts.sources + facts.further:
        for file in source.hashes:
            _check_file(source, file, data_dir, findings)
    try:
        with offline():
            dataset = DATASETS[name](data_dir)
    except UserError as error:
        findings.problems.append(str(error))
        return findings
    assert dataset.test is not None
    for what, found, known in (
        ("training samples", len(dataset.train.y), facts.train),
        ("test samples", len(dataset.test.y), facts.test),
        ("classes", dataset.classes, facts.classes),
        ("samples of the shape", tuple(dataset.train.tensor.shape[1:]), facts.shape),
    ):
        if found != known:
            findings.problems.append(f"data set '{name}': found {found} {what}, allowed: {known}. Fetch it again")
    return findings


def _check_file(source: Source, file: str, data_dir: Path, findings: Findings) -> None:
    path = lying(("", *source.folders), file, data_dir)
    if path is None:
        return
    known, content = source.hashes[file], source.contents.get(file.removesuffix(".gz"))
    as_it_is = path.name == file and is_known(path, known)
    if as_it_is or (content is not None and _md5_unzipped(path) == content):
        findings.published.append(path)
    elif path.name == file or content is not None:
        findings.problems.append(f"{path}: by its md5 not the file that was published. Delete it and fetch it again")


def _md5_unzipped(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        return "damaged"
    return f"md5:{digest.hexdigest()}"
