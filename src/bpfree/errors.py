"""What goes wrong at a user's hand, said in one line: the argument, the value found, what is allowed, the cure."""

import difflib
import reprlib
from collections.abc import Iterable


class UserError(ValueError):
    """Input that cannot work. The shell prints its text and exits with 2; no traceback."""


class DivergedError(UserError):
    """A loss or a weight became NaN or infinite; the run was stopped and its last good checkpoint kept."""


class LeakError(UserError):
    """A connection around a tap carries the loss of one segment into the parameters of another."""


def unknown(kind: str, found: str, known: Iterable[str], prefix: str = "", to: str = "") -> UserError:
    """An error for a name that is in no table, with the nearest one that is.

    Args:
        kind: what is looked up.
        found: the name.
        known: the table.
        prefix: shown before the name, such as the section of a key.
        to: whose table it is, where that is no matter of course.

    >>> str(unknown("rule", "dfaa", ["dfa", "backprop"]))
    "unknown rule 'dfaa'. Did you mean 'dfa'? Known: backprop, dfa"
    """
    names = sorted(known)
    near = difflib.get_close_matches(found, names, n=1, cutoff=0.5)
    hint = f" Did you mean '{prefix}{near[0]}'?" if near else ""
    whose = f" to {to}" if to else ""
    return UserError(f"unknown {kind} '{prefix}{found}'.{hint} Known{whose}: {', '.join(names)}")


_short = reprlib.Repr()
_short.maxlevel, _short.maxdict, _short.maxlist, _short.maxtuple = 4, 10, 10, 10
_short.maxstring, _short.maxlong, _short.maxother = 200, 100, 200


def shown(value: object) -> str:
    """A value as an error shows it: in full if it is short.

    >>> shown({"lr": [0.1] * 100})
    "{'lr': [0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, ...]}"
    """
    return _short.repr(value)


def no_soft_labels(rule: str) -> UserError:
    """The error for a rule that cannot train with mixup."""
    return UserError(
        f"rule '{rule}' reads one class for each sample, but data.augment.mixup gives shares of the classes. Use "
        "data.augment.mixup=0, or a rule with takes_soft_labels, such as backprop, dfa, mono_forward, eggroll"
    )


def check_choice(argument: str, found: object, allowed: Iterable[str]) -> None:
    """Raise UserError unless `found` is one of `allowed`."""
    names = list(allowed)
    if found not in names:
        raise UserError(f"{argument}: found {found!r}, allowed: {', '.join(names)}")


def check_positive(argument: str, found: float) -> None:
    """Raise UserError unless `found` is a number above 0."""
    if not found > 0:
        raise UserError(f"{argument}: found {found!r}, allowed: a number above 0")
