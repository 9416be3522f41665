"""The columns on locality in the tables of rules: measured by `certify`, not written by hand.

    python -m bpfree.lab.certify.table README.md docs/rules/README.md

rewrites them in place. A Markdown table takes part if its first column links to rules, as in [`dfa`](dfa.md), and a
heading is one of `COLUMNS`. All other cells stay as they are.
"""

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bpfree.diffusion import DiffusionRule
from bpfree.disk.atomic import write_text
from bpfree.errors import UserError
from bpfree.lab.certify.certificate import Certificate
from bpfree.lab.certify.measure import certify
from bpfree.local.rule import LocalRule
from bpfree.nets import NETS
from bpfree.rule import Rule
from bpfree.rules import RULES
from bpfree.tasks import Classify
from bpfree.types import Batch

COMMAND = "python -m bpfree.lab.certify.table README.md docs/rules/README.md"
_IN_SHAPE, _CLASSES, _SAMPLES = (1, 8, 8), 10, 16
_HIDDEN = (14, 13, 12, 11)  # five layers: with three parts or fewer, nobody can tell whether memory grows
_BLOCKS = 4
_POPULATION = 8  # of black-box rules: what their members depend on does not depend on how many there are

# Options that change a property: what the table calls them, options of the rule, options of the net.
_Variant = tuple[str, dict[str, Any], dict[str, Any]]
_TRUNK: _Variant = ("net.trunk: local", {}, {"trunk": "local"})
_VARIANTS: dict[str, _Variant] = {
    **dict.fromkeys(("dfa", "grape"), ("memory: flat", {"memory": "flat"}, {})),
    "forward_forward": ("negatives: even", {"negatives": "even"}, {}),
    **dict.fromkeys((name for name, rule in RULES.items() if issubclass(rule, DiffusionRule)), _TRUNK),
}


def _through(rule: type[Rule], certificate: Certificate) -> str:
    measured = certificate.measurements
    assert measured is not None
    if measured.locality.through == "part":
        kind = "segment" if issubclass(rule, LocalRule) else "layer" if measured.chain <= 1 else "block"
        return f"one {kind}"
    if measured.locality.through == "nothing":
        return "nothing"
    forwards = all(objective.kind == "forward" for objective in measured.objectives)
    return "the whole net, forwards" if forwards else "the whole net"


def _waits(rule: type[Rule], certificate: Certificate) -> str:
    assert certificate.measured is not None
    return "yes" if certificate.measured.waits else "no"


def _memory(rule: type[Rule], certificate: Certificate) -> str:
    measured = certificate.measurements
    assert measured is not None
    if measured.memory is not None and measured.memory.parts == 1:
        return "of the only part"
    return {True: "of all parts", False: "of a few parts", None: "too few parts to tell"}[measured.grows]


COLUMNS: dict[str, Callable[[type[Rule], Certificate], str]] = {
    "differentiated through": _through,
    "waits for the output": _waits,
    "activations kept": _memory,
}
"""By heading of the column: a function that returns the cell of a rule."""


@cache
def cells(name: str) -> Mapping[str, str]:
    """Return the measured cells of one rule, by the heading of the column.

    Args:
        name: the name of a rule in `RULES`.

    Example:
        >>> cells("drtp")["waits for the output"]
        'no'
        >>> cells("dfa")["activations kept"]
        'of all parts (of a few parts with `memory: flat`)'
    """
    rule, default = RULES[name], _certificate(name, {}, {})
    measured = {heading: cell(rule, default) for heading, cell in COLUMNS.items()}
    if name not in _VARIANTS:
        return measured
    label, rule_options, net_options = _VARIANTS[name]
    variant = _certificate(name, rule_options, net_options)
    for heading, cell in COLUMNS.items():
        if (other := cell(rule, variant)) != measured[heading]:
            measured[heading] += f" ({other} with `{label}`)"
    return measured


def _certificate(name: str, rule_options: Mapping[str, Any], net_options: Mapping[str, Any]) -> Certificate:
    small = {"population": _POPULATION} if "population" in inspect.signature(RULES[name]).parameters else {}
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_SAMPLES, *_IN_SHAPE, generator=generator)
    batch = Batch(x, torch.arange(_SAMPLES) % _CLASSES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = _net(name, net_options)
    return certify(net, {"name": name, **small, **rule_options}, Classify(_CLASSES), batch)


def _net(name: str, options: Mapping[str, Any]) -> nn.Module:
    rule = RULES[name]
    if issubclass(rule, DiffusionRule):
        head = {"timed": rule.timed, "predicts": rule.predicts}
        blocks = 1 if rule.timed else _BLOCKS
        return NETS["denoiser"](_IN_SHAPE, _CLASSES, **{"blocks": blocks, "head": head, "width": 16, **options})
    if rule.needs_net == "vit":
        return NETS["vit"](_IN_SHAPE, _CLASSES, width=16, heads=2, depth=_BLOCKS)
    return NETS["mlp"](_IN_SHAPE, _CLASSES, hidden=list(_HIDDEN), activation="tanh", batch_norm=True)


def refreshed(text: str) -> str:
    """Return a Markdown page whose tables of rules have measured cells.

    A row with several rules has one cell if all of them agree, and otherwise "`rule`: cell" for each.

    Args:
        text: the page.
    """
    lines = text.split("\n")
    for number, headings, names in rule_rows(lines):
        row = _split(lines[number])
        for column, heading in enumerate(headings):
            if heading in COLUMNS:
                row[column] = _joined({name: cells(name)[heading] for name in names})
        lines[number] = f"| {' | '.join(row)} |"
    return "\n".join(lines)


def rule_rows(lines: Sequence[str]) -> Iterator[tuple[int, list[str], list[str]]]:
    """Yield the number of each row that has measured cells, with its table's headings and the rules that it is about.

    Args:
        lines: the lines of a Markdown page.
    """
    headings: list[str] = []
    for number, line in enumerate(lines):
        if not line.startswith("|"):
            headings = []
        elif not headings:
            headings = _split(line)
        elif not COLUMNS.keys().isdisjoint(headings):
            names = [name for name in re.findall(r"\[`(\w+)`\]", _split(line)[0]) if name in RULES]
            if names:
                yield number, headings, names


def _split(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|")]


def _joined(by_rule: Mapping[str, str]) -> str:
    if len(set(by_rule.values())) == 1:
        return next(iter(by_rule.values()))
    return "; ".join(f"`{name}`: {cell}" for name, cell in by_rule.items())


def main(paths: Iterable[str]) -> None:
    """Rewrite the measured cells of some Markdown pages.

    Args:
        paths: the pages.

    Raises:
        UserError: a page has no table of rules.
    """
    for path in map(Path, paths):
        text = path.read_text(encoding="utf-8")
        if not any(rule_rows(text.split("\n"))):
            raise UserError(f"{path}: found no table of rules, allowed: a page with a column {', '.join(COLUMNS)}")
        write_text(path, refreshed(text))


if __name__ == "__main__":
    main(sys.argv[1:])
