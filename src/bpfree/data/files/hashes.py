"""Whether a file is the one that was published."""

from pathlib import Path

import pooch

from bpfree.errors import UserError


def is_known(path: Path, known_hash: str) -> bool:
    """Whether the file has that hash, such as "md5:..."."""
    return hash_of(path, known_hash) == known_hash


def check_hash(path: Path, known_hash: str) -> None:
    """Raise UserError unless the file has that hash, such as "md5:..."."""
    if (found := hash_of(path, known_hash)) != known_hash:
        kind, _, value = known_hash.partition(":")
        raise UserError(
            f"{path}: found the {kind} {found.removeprefix(kind + ':')}, allowed: {value}, as published. Delete it and "
            "fetch it again"
        )


def hash_of(path: Path, known_hash: str) -> str:
    """The hash of the file, of the same kind as the known one."""
    kind = known_hash.partition(":")[0]
    return f"{kind}:{pooch.file_hash(str(path), alg=kind)}"
