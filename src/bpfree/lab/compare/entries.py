"""The rows of a comparison before they are trained, and the groups that they form."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from bpfree.rule import Rule
from bpfree.rules import RULES
from bpfree.runs.config import Config
from bpfree.spec import build

Kind = Literal["baseline", "control", "rule"]
"""What a row is for: backprop, a control experiment, or a rule that the user compares."""
Net = Mapping[str, Any]
"""The section `net` of a config."""


@dataclass
class Entry:
    """A row of a comparison: a rule with its config.

    Attributes:
        name: the name of the row and of the folders of its runs.
        config: the complete config of the first seed.
        notes: remarks that say how the row differs from the other rows.
        refused: why the rule cannot train this net for this task; the row is then shown but not trained. Otherwise "".
        kind: "baseline" for backprop, "control" for a control experiment, "rule" for any other row.
        added: True if the user did not ask for the row. Then its failure is not a failure of the comparison.
        make_rule: makes the rule, if the user passed a function; otherwise None, and the config names the rule.
        net: a short text for the net, such as "mlp [256, 256]". Rows have the same text if they have the same net.
        baseline: the name of the row that this one is compared with: backprop on the same net. "" if there is none.
    """

    name: str
    config: Config
    notes: list[str] = field(default_factory=list)
    refused: str = ""
    kind: Kind = "rule"
    added: bool = False
    make_rule: Callable[[], Rule] | None = None
    net: str = field(default="", init=False)
    baseline: str = field(default="", init=False)

    def rule(self) -> Rule:
        """Return a new rule of this row."""
        if self.make_rule is not None:
            return self.make_rule()
        rule: Rule = build(RULES, self.config.rule, section="rule", outside=Rule)
        return rule


@dataclass
class Group:
    """Rows that have data, task and epochs in common, and one table in the report.

    Attributes:
        name: the name of the first config of the group.
        config: this config.
        entries: the rows. Rows of one net stand together: first backprop, then controls, then rules.
    """

    name: str
    config: Config
    entries: list[Entry]


def name_nets(entries: Sequence[Entry]) -> None:
    """Give each row the text for its net, which is different for different nets.

    Args:
        entries: the rows of a group, which are changed.
    """
    nets: list[Net] = []
    for entry in entries:
        if entry.config.net not in nets:
            nets.append(entry.config.net)
    for entry in entries:
        net = entry.config.net
        entry.net = short_text(net)
        alike = [other for other in nets if other != net and short_text(other) == entry.net]
        for key, value in net.items():
            unlike = [other for other in alike if other.get(key) != value]
            if unlike and isinstance(value, str | int | float | bool):
                entry.net += f", {key}: {value}"
                alike = [other for other in alike if other not in unlike]


def short_text(net: Net) -> str:
    """Return a short text for a net.

    Args:
        net: the section `net` of a config.

    Example:
        >>> short_text({"name": "mlp", "hidden": [128, 128], "activation": "relu"})
        'mlp [128, 128]'
        >>> short_text({"name": "denoiser", "backbone": {"name": "conv", "norm": True}, "blocks": 5})
        'denoiser (conv), 5 blocks'
        >>> short_text({"name": "mynets:ResNet"})
        'ResNet'
    """
    backbone = backbone_of(net)
    size = next((net[key] for key in ("channels", "hidden") if isinstance(net.get(key), list)), None)
    blocks = net.get("blocks")
    return (
        str(net["name"]).rpartition(":")[2]
        + (f" {size}" if size else "")
        + (f" ({backbone})" if backbone else "")
        + (f", {blocks} block{'s' if blocks != 1 else ''}" if blocks else "")
    )


def backbone_of(net: Net) -> str | None:
    """Return the name of a net's backbone, which is a name or a section; None for a net without one.

    Args:
        net: the section `net` of a config.
    """
    backbone = net.get("backbone")
    return backbone.get("name") if isinstance(backbone, Mapping) else backbone
