"""Rows of a comparison in families of rules, so few in each that their lines can be told apart."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from bpfree.diffusion import DiffusionRule
from bpfree.lab.compare.measure import Row
from bpfree.local.rule import LocalRule
from bpfree.pictures.plots import LINES
from bpfree.population.rule import BlackBoxRule
from bpfree.rule import Rule
from bpfree.rules import RULES
from bpfree.rules.diffusion_blocks import DiffusionBlocks

BASELINE, CONTROL = "#000000", "#858a93"
"""Black for the baseline, so that it takes the colour of the text of a page, and grey for the controls."""
_DASHES: tuple[Any, ...] = ("--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
_FEW = len(LINES)  # rules; so many fit into one panel


class Style(NamedTuple):
    """The look of the line of a row.

    Attributes:
        color: of the line and of its label.
        dashes: the style of the line, as matplotlib takes it.
        width: of the line in points.
    """

    color: str
    dashes: Any = "-"
    width: float = 1.8


class Panel(NamedTuple):
    """Rows that are drawn in one panel.

    Attributes:
        title: the name of the family; the name of the net if the panel has all of its rows.
        net: the net that all rows train.
        rows: the rules, in the order of the table.
        grey: the baseline of the net and the controls.
        names_controls: True if the lines of the controls get labels; False if another panel of the net names them.
    """

    title: str
    net: str
    rows: list[Row]
    grey: list[Row]
    names_controls: bool = True

    @property
    def named(self) -> list[str]:
        """The names of the rows whose lines get labels."""
        grey = [row["name"] for row in self.grey if self.names_controls or is_reference(row)]
        return [*grey, *(row["name"] for row in self.rows)]

    @property
    def styles(self) -> dict[str, Style]:
        """The style of each row by its name: colours for rules, black for the baseline, grey for the controls."""
        styles: dict[str, Style] = {}
        for row in self.grey:
            dashes = _DASHES[len(styles) % len(_DASHES)]
            styles[row["name"]] = Style(BASELINE, "-", 1.6) if is_reference(row) else Style(CONTROL, dashes, 1.1)
        return styles | {row["name"]: Style(color) for row, color in zip(self.rows, LINES, strict=False)}


def is_reference(row: Row) -> bool:
    """Return True if the other rows of the net are compared with this one.

    Args:
        row: a row of the record.
    """
    return bool(row["kind"] == "baseline" and not row.get("baseline"))


def by_net(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return rows by the net that they train, in the order of first appearance; the baseline is the first of each net.

    Args:
        rows: rows of one group.
    """
    nets: dict[str, list[Row]] = {}
    for row in rows:
        nets.setdefault(row["net"], []).append(row)
    order = ("baseline", "control", "rule")
    return {
        net: sorted(of, key=lambda row: (not is_reference(row), order.index(row["kind"]))) for net, of in nets.items()
    }


def panels(rows: Sequence[Row]) -> list[Panel]:
    """Return the panels of one group: one for each net if it has few rules, else one for each family of rules.

    Args:
        rows: trained rows of one group.
    """
    return [panel for net, of in by_net(rows).items() for panel in _of_net(net, of)]


def _of_net(net: str, rows: Sequence[Row]) -> Iterator[Panel]:
    """Yield the panels of one net; families with too many rules for one panel take several of equal size."""
    grey = [row for row in rows if row["kind"] != "rule"]
    rules = [row for row in rows if row["kind"] == "rule"]
    if len(rules) <= _FEW:
        yield Panel(net, net, rules, grey)
        return
    families: dict[str, list[Row]] = {}
    for row in rules:
        families.setdefault(family(row), []).append(row)
    for title, members in families.items():
        count = math.ceil(len(members) / _FEW)
        size = math.ceil(len(members) / count)
        for part in range(count):
            named = f"{title}, {part + 1} of {count}" if count > 1 else title
            yield Panel(named, net, members[part * size : (part + 1) * size], grey, False)
    yield Panel("Baseline and controls", net, [], grey)


def family(row: Row) -> str:
    """Return the name of the family that the rule of a row belongs to.

    Args:
        row: a row of the record.
    """
    kind: Any = RULES.get(row["rule"])
    if kind is None:
        return "Rules of your own"
    if is_black_box(row):
        return "Rules that only query the loss"
    if issubclass(kind, DiffusionRule | DiffusionBlocks):
        return "Denoising blocks"
    if kind.feedback_paths is not Rule.feedback_paths:
        return "Feedback alignment"
    return "Local losses" if issubclass(kind, LocalRule) else "Other rules"


def is_black_box(row: Row) -> bool:
    """Return True if the rule of a row is a black-box rule, whose cost is best counted in forward passes.

    Args:
        row: a row of the record.
    """
    return issubclass(RULES.get(row["rule"], Rule), BlackBoxRule)
