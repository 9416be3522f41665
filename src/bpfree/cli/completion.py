"""Names for the TAB key: configs, rules and all else that a command takes.

`bpfree --install-completion` installs it for bash, zsh and fish.
"""

import os
from collections.abc import Iterable

from bpfree.cli.catalog import KINDS, SECTIONS
from bpfree.data import DATASETS
from bpfree.rules import RULES
from bpfree.runs.config_file import shipped

_TABLES = {kind.section: kind.table for kind in KINDS}


def _starting(names: Iterable[str], start: str) -> list[str]:
    return [name for name in names if name.startswith(start)]


def configs(incomplete: str) -> list[str]:
    """Return the shipped configs that begin with a text. The shell adds files by itself.

    Args:
        incomplete: what stands before the cursor.
    """
    return _starting(shipped(), incomplete)


def rules(incomplete: str) -> list[str]:
    """Return the rules that begin with the last word of a list with commas, each with the words before it.

    Args:
        incomplete: what stands before the cursor, such as "dfa,mono".
    """
    before, comma, start = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in _starting([*RULES, "all"], start)]


def changes(incomplete: str) -> list[str]:
    """Return the changes of a config that begin with a text: `rule=` and then its names, and so for other sections.

    Args:
        incomplete: what stands before the cursor, such as "rule=mo".
    """
    section, equals, start = incomplete.partition("=")
    if equals:
        return [f"{section}={name}" for name in _starting(_TABLES.get(section, ()), start)]
    # bash takes "rule=mo" for three words, of which "mo" is to be completed.
    words = os.environ.get("COMP_WORDS", "").split()
    for place, word in enumerate(words):
        if word == "=" and words[place + 1 :] == ([incomplete] if incomplete else []):
            return _starting(_TABLES.get(words[place - 1], ()), incomplete)
    return _starting((f"{name}=" for name in (*_TABLES, "train.epochs", "train.seed")), incomplete)


def configs_and_changes(incomplete: str) -> list[str]:
    """Return configs and changes of them; see `configs` and `changes`."""
    return [*configs(incomplete), *changes(incomplete)]


def datasets(incomplete: str) -> list[str]:
    """Return the data sets that begin with a text."""
    return _starting(DATASETS, incomplete)


def kinds(incomplete: str) -> list[str]:
    """Return what `bpfree list` lists, as far as it begins with a text."""
    return _starting((*(kind.plural for kind in KINDS), "configs"), incomplete)


def names(incomplete: str) -> list[str]:
    """Return what `bpfree show` explains, as far as it begins with a text."""
    known = dict.fromkeys(name for kind in KINDS for name in kind.table)
    return _starting((*known, *SECTIONS, *shipped()), incomplete)
