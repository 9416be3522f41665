"""Errors that a user can correct, and checks that raise them.

A message is one line. It names the argument, the value found, what is allowed, and the cure.
"""

import difflib
import reprlib
from collections.abc import Iterable


class UserError(ValueError):
    """An error in the user's input. The command line prints it as one line and ends with exit code 2."""


class DivergedError(UserError):
    """A loss or a weight became NaN or infinite. The run has stopped, and its last good checkpoint is kept."""


class LeakError(UserError):
    """A connection around a tap lets the loss of one segment change the parameters of another segment."""


MOST_NAMES = 8  # that an error proposes; a screen full of names hides the one that is meant
_SIMILAR = 0.5  # from this likeness on a name is similar
_WORSE = 0.25  # a name that is worse than the best one by more is not shown
_SHORT_LIST = 12  # so many names are shown in full
_LISTS = {  # the command that shows all names of a kind, or all keys of a section
    "config": "bpfree list configs",
    "data.": "bpfree show data",
    "data set": "bpfree data list",
    "dataset": "bpfree list datasets",
    "net": "bpfree list nets",
    "rule": "bpfree list rules",
    "tracker": "bpfree list trackers",
}


def unknown(kind: str, found: str, known: Iterable[str], prefix: str = "", to: str = "") -> UserError:
    """Return the error for an unknown name; it proposes the most similar known names, the best one first.

    Args:
        kind: what the name should be the name of, such as "rule".
        found: the unknown name.
        known: the known names. If two are equally similar, the first one is proposed first.
        prefix: text before the name in the message, such as the section of a key.
        to: who knows the names, such as "the net mlp"; "" if that is obvious.

    Returns:
        The error, for the caller to raise.

    Example:
        >>> str(unknown("rule", "dfaa", ["dfa", "backprop"]))
        "unknown rule 'dfaa'. Did you mean 'dfa'? Known: backprop, dfa"
    """
    names = list(known)
    near = similar(found, names)
    hint = f" Did you mean '{prefix}{near[0]}'?" if near else ""
    whose = f" to {to}" if to else ""
    if len(names) <= _SHORT_LIST:
        rest = f" Known{whose}: {', '.join(sorted(names))}"
    else:
        others = f" Also similar: {', '.join(near[1:])}." if near[1:] else ""
        listing = _LISTS.get(kind) or _LISTS.get(prefix)
        command = f": `{listing}` shows them" if listing else ""
        rest = f"{others} There are {len(names)} names{whose}{command}"
    return UserError(f"unknown {kind} '{prefix}{found}'.{hint}{rest}")


def similar(found: str, known: Iterable[str]) -> list[str]:
    """Return up to `MOST_NAMES` known names that are similar to a name, the most similar first.

    A name without a slash is compared with what is behind the slash of a known name: "dfa" finds "digits/dfa".

    Args:
        found: the name as the user wrote it.
        known: the known names. Equally similar names keep their order.

    Example:
        >>> similar("dfa", ["digits/mlp", "digits/fa", "digits/dfa"])
        ['digits/dfa', 'digits/fa']
    """
    likeness = {name: _likeness(found.lower(), name.lower()) for name in known}
    enough = max(_SIMILAR, max(likeness.values(), default=0) - _WORSE)
    return sorted((name for name in likeness if likeness[name] >= enough), key=lambda n: -likeness[n])[:MOST_NAMES]


def _likeness(found: str, name: str) -> float:
    """Return how similar two names are, from 0 to 1."""
    if "/" in found and "/" in name:  # part by part, since one part in common would make any two names similar
        return (_ratio(found.partition("/")[0], name.partition("/")[0]) + _ratio(_last(found), _last(name))) / 2
    return max(_ratio(found, name), _ratio(found, _last(name)))


def _last(name: str) -> str:
    return name.partition("/")[2] or name


def _ratio(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b, autojunk=False).ratio()


_short = reprlib.Repr()  # a value such as a whole array must not make a message of many lines
_short.maxlevel, _short.maxdict, _short.maxlist, _short.maxtuple = 4, 10, 10, 10
_short.maxstring, _short.maxlong, _short.maxother = 200, 100, 200


def shown(value: object) -> str:
    """Return a value as text for an error: in full if it is short, else with dots in place of its rest.

    Args:
        value: any value of a user.

    >>> shown({"lr": [0.1] * 100})
    "{'lr': [0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, ...]}"
    """
    return _short.repr(value)


def no_soft_labels(rule: str) -> UserError:
    """Return the error for a rule that cannot train with mixup.

    Args:
        rule: the name of the rule.
    """
    return UserError(
        f"rule '{rule}' reads one class for each sample, but data.augment.mixup gives shares of the classes. Use "
        "data.augment.mixup=0, or a rule that takes soft labels, such as backprop, dfa, mono_forward, eggroll"
    )


def check_choice(argument: str, found: object, allowed: Iterable[str]) -> None:
    """Raise UserError unless `found` is one of `allowed`.

    Args:
        argument: the name of the argument, for the message.
        found: the value.
        allowed: the allowed values.

    Raises:
        UserError: the value is not allowed.

    >>> check_choice("weights", "last", ("last", "best"))
    """
    names = list(allowed)
    if found not in names:
        raise UserError(f"{argument}: found {found!r}, allowed: {', '.join(names)}")


def check_positive(argument: str, found: float) -> None:
    """Raise UserError unless `found` is a number above 0.

    Args:
        argument: the name of the argument, for the message.
        found: the value.

    Raises:
        UserError: the value is 0, negative or NaN.

    >>> check_positive("epochs", 0)
    Traceback (most recent call last):
    ...
    bpfree.errors.UserError: epochs: found 0, allowed: a number above 0
    """
    if not found > 0:  # and not `found <= 0`, which is False for NaN
        raise UserError(f"{argument}: found {found!r}, allowed: a number above 0")
