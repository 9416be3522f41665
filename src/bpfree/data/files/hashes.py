"""Compare a file with the published one by its hash."""

from pathlib import Path

import pooch

from bpfree.errors import UserError


def is_known(path: Path, known_hash: str) -> bool:
    """Return True if the file has that hash.

    Args:
        path: of the file.
        known_hash: the kind and the value, such as "md5:...".
    """
    return hash_of(path, known_hash) == known_hash


def check_hash(path: Path, known_hash: str) -> None:
    """Raise UserError unless the file has that hash.

    Args:
        path: of the file.
        known_hash: the kind and the value, such as "md5:...".
    """
    if (actual := hash_of(path, known_hash)) != known_hash:
        kind, _, value = known_hash.partition(":")
        raise UserError(
            f"{path}: found the {kind} {actual.removeprefix(kind + ':')}, allowed: {value}, as published. Delete it "
            "and fetch it again"
        )


def hash_of(path: Path, known_hash: str) -> str:
    """Return the hash of a file, of the same kind as `known_hash`, such as "md5:..."."""
    # Most publishers give md5, which shows damage but stops no attacker. So readers trust no file, whatever its hash.
    kind = known_hash.partition(":")[0]
    return f"{kind}:{pooch.file_hash(str(path), alg=kind)}"
