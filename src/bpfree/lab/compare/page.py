"""The HTML report of a comparison: tables, learning curves, costs and configs of its groups."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import yaml
from markupsafe import Markup

from bpfree.lab import statistics
from bpfree.lab.compare.charts import chapters
from bpfree.lab.compare.families import by_net, is_black_box
from bpfree.lab.compare.measure import Row
from bpfree.lab.report.format import of_heads
from bpfree.lab.report.html import (
    Cell,
    Column,
    Heading,
    Section,
    code,
    details,
    facts,
    page,
    paragraph,
    picture,
    table,
    write_page,
)

MISSING = "\u2013"  # a dash
_CAUTION = (
    "All rules train for the same epochs, with the same samples in the same order. The options, optimizer and schedule "
    "of a rule come from its shipped config for this data set, if there is one. They were tuned by hand: small "
    "differences between rules mean little.",
    "A difference is the one from backprop on the same net, with its 95 % confidence interval: 95 % of such intervals "
    "contain the true difference. It has a colour and a * if p is below 0.05 after Holm's correction for the number of "
    "rows.",
    "Heads are what a rule reads hidden layers with. Below the parameters stands by how much heads enlarge the "
    "parameters of the net, and the floating-point operations of a training step.",
    "CPU seconds and wall seconds are those of training and validation. Each run has one thread; only nets and data "
    "that were passed from Python train with all threads of their process.",
    "Memory is the peak of one training step beyond parameters and optimizer state, counted at torch's allocator. "
    "Growth is what the process took from the system during training, optimizer state and validation included: its "
    "resident memory on a CPU, what torch reserved on a GPU. It contains what is set up once, and the gaps between "
    "tensors.",
)


def write_comparison(record: dict[str, Any], path: Path) -> Path:
    """Write the report of a comparison as one self-contained HTML file.

    Args:
        record: the values of compare.json.
        path: the file.

    Returns:
        The path of the file.

    Raises:
        UserError: the file cannot be written.
    """
    groups = record["groups"]
    sections = [section for group in groups for section in _of_group(group, alone=len(groups) == 1)]
    about: list[Markup] = [facts({"date": record["date"], **record["machine"]})]
    if record["command"]:
        again = "This command repeats the comparison. It does not train finished runs again:"
        about = [paragraph(again), code(record["command"]), *about]
    sections.append(Section("How this was measured", [*map(paragraph, _CAUTION), *about]))
    data = ", ".join(dict.fromkeys(group["config"]["data"]["name"] for group in groups))
    lead = _lead(groups[0]) if len(groups) == 1 else f"{len(groups)} comparisons with different nets or data."
    return write_page(path, page(f"Learning rules and backprop on {data}", lead=lead, sections=sections))


def _lead(group: dict[str, Any]) -> str:
    """Return a sentence about a group: how many rows each net has, and the epochs and seeds."""
    trained = [row for row in group["rows"] if row["runs"]]
    if not trained:
        return "No run was finished."
    seeds = max(len(row["runs"]) for row in trained)
    times = "seed" if seeds == 1 else "seeds"
    nets = by_net(trained)
    ways = [f"{len(rows)} way{'s' * (len(rows) > 1)} to train {net or 'a net'}" for net, rows in nets.items()]
    epochs = group["config"]["train"]["epochs"]
    return f"{', '.join(ways)}: {epochs} epochs, {seeds} {times}."


def _of_group(group: dict[str, Any], *, alone: bool) -> list[Section]:
    """Return the sections of a group; their titles begin with its name unless it is the only group."""
    title = "" if alone else f"{group['name']}: "
    rows: list[Row] = group["rows"]
    sections = [Section(f"{title}Results", [_results(group), *_not_trained(rows)], _legend(group))]
    for chapter in chapters(group):
        pictures = [picture(each.figure, alt=each.alt) for each in chapter.figures]
        sections.append(Section(f"{title}{chapter.title}", pictures, chapter.note))
    configs = [details(row["name"], [code(yaml.safe_dump(row["config"], sort_keys=False))]) for row in rows]
    return [*sections, Section(f"{title}Configs", configs)]


def _results(group: dict[str, Any]) -> Markup:
    """Return the table of results, with a heading for each net and the baseline of the net below it."""
    lines: list[list[Cell] | Heading] = []
    for net, rows in by_net(group["rows"]).items():
        lines += [Heading(net or "not trained"), *(_cells(row, group) for row in rows)]
    return table(columns(group), lines)


def _not_trained(rows: Sequence[Row]) -> list[Markup]:
    """Return a paragraph for each row without runs, or with fewer runs than planned, that says why."""
    reasons = [(row, error) for row in rows for error in row.get("errors", [])]
    return [
        paragraph(f"{row['name']}, {'some seeds' if row['runs'] else ''} not trained: {error}".replace(",  ", ", "))
        for row, error in reasons
    ]


def _legend(group: dict[str, Any]) -> str:
    """Return the sentences that explain the table: intervals, marks and the target; "" if no run was finished."""
    if "target" not in group:
        return ""
    row = next(row for row in group["rows"] if row["runs"])
    watched = row["runs"][0]["watched"]
    sign = "at most" if row["metric"] == "loss" else "at least"
    target = f"Time to target: CPU seconds until {watched} {row['metric']} is {sign} "
    return " ".join([*statistics.footer(group["rows"]), f"{target}{_shown(group['target'], row['metric'])}."])


def columns(group: dict[str, Any]) -> list[Column]:
    """Return the columns of the table of results.

    Args:
        group: a group of the record.
    """
    row = next((row for row in group["rows"] if row["runs"]), None)
    # All rows of a group have the same data and task, so one row that was trained tells the metric of all.
    metric = "accuracy" if row is None else row["metric"]
    split = "test" if row is None else row["runs"][0]["split"]
    unit = "%" if metric == "accuracy" else ""
    return [
        Column("rule", numeric=False),
        Column("parameters", "of net and rule"),
        Column(f"{split} {metric}", f"{unit}, mean ± std".strip(", ")),
        *([Column("balanced accuracy", "%")] if is_skewed(group) else []),
        Column("difference", f"from the baseline{', points' if unit else ''} [95 % interval]"),
        Column("p", "Holm"),
        Column("CPU time", "s"),
        Column("wall time", "s"),
        Column("to target", "CPU s"),
        Column("memory", "MB, step / growth" if has_growth(group) else "MB per step"),
        *([Column("queries", "forward passes")] if has_queries(group) else []),
        *([Column("energy", "J")] if has_energy(group) else []),
        Column("samples/s", "training"),
    ]


def has_queries(group: dict[str, Any]) -> bool:
    """Return True if a group has black-box rules with their numbers of forward passes.

    Args:
        group: a group of the record.
    """
    return any(row.get("queries") is not None and is_black_box(row) for row in group["rows"])


def has_heads(group: dict[str, Any]) -> bool:
    """Return True if some rule of a group reads the net's segments by heads whose operations were counted.

    Args:
        group: a group of the record.
    """
    return any(of_heads(row) is not None for row in group["rows"])


def has_growth(group: dict[str, Any]) -> bool:
    """Return True if it was measured how much the process of some row grew; earlier versions did not.

    Args:
        group: a group of the record.
    """
    return any(row.get("memory_growth_bytes") is not None for row in group["rows"])


def has_energy(group: dict[str, Any]) -> bool:
    """Return True if the energy of some row was measured.

    Args:
        group: a group of the record.
    """
    return any(row.get("energy_joules") is not None for row in group["rows"])


def _cells(row: Row, group: dict[str, Any]) -> list[Cell]:
    """Return the cells of a row, in the order of `columns`; a row without runs has dashes."""
    notes = "; ".join(row["notes"]) if row["runs"] else "not trained"
    name = Cell(row["name"], note=notes, kind="" if row["runs"] else "muted")
    if not row["runs"]:
        # As many cells as `columns` has, because `table` refuses a shorter row.
        return [name, *[Cell(MISSING, kind="muted")] * (len(columns(group)) - 1)]
    parameters = row["parameters"] + row["rule_parameters"]
    return [
        name,
        Cell(f"{parameters:,.0f}", sort=parameters, note=_heads(row)),
        Cell(score(row), sort=row["mean"]),
        *([Cell(balanced(row), sort=_balanced(row))] if is_skewed(group) else []),
        *_difference(row),
        _number(row["cpu_seconds"], ".1f"),
        _number(row["wall_seconds"], ".1f"),
        _to_target(row),
        _memory(row, group),
        *([_number(row.get("queries"), ",.0f")] if has_queries(group) else []),
        *([_number(row.get("energy_joules"), ",.1f")] if has_energy(group) else []),
        _number(row["samples_per_second"], ",.0f"),
    ]


def _heads(row: Row) -> str:
    """Return by how many % heads enlarge the parameters of the net, and the operations of a step; "" without heads."""
    # Not a column of its own, with which the table would not fit into 1280 pixels.
    added = of_heads(row)
    return "" if added is None else f"heads {added[0]:.0f} / {added[1]:.0f} %"


def _to_target(row: Row) -> Cell:
    """Return the CPU seconds until the target; if not every run reached it, how many did."""
    if "seconds_to_target" in row:
        return _number(row["seconds_to_target"], ".1f")
    # A mean over the runs that reached the target would favour a rule that reaches it with one lucky seed.
    reached = row["reached_target"]
    return Cell(f"{reached} of {len(row['runs'])}" if reached else MISSING, sort=MISSING, kind="muted")


def score(row: Row) -> str:
    """Return the mean score as text, with the standard deviation if there are several seeds.

    Args:
        row: a row of the record that has runs.

    >>> score({"metric": "accuracy", "mean": 0.9722, "std": 0.004})
    '97.22 ± 0.40'
    """
    mean = _shown(row["mean"], row["metric"], unit=False)
    return mean if row["std"] is None else f"{mean} ± {_shown(row['std'], row['metric'], unit=False)}"


def is_skewed(group: dict[str, Any]) -> bool:
    """Return True if the classes of the training data differ in size.

    Then balanced accuracy says more than accuracy.

    Args:
        group: a group of the record.
    """
    return bool(group["config"]["data"].get("skew"))


def balanced(row: Row) -> str:
    """Return the mean balanced accuracy on the test split in % as text; a dash if there is none.

    Args:
        row: a row of the record.
    """
    mean = _balanced(row)
    return MISSING if mean is None else f"{100 * mean:.2f}"


def _balanced(row: Row) -> float | None:
    """Return the mean balanced accuracy of a row's runs, from 0 to 1; None if none was measured."""
    values = [run["test"]["balanced_accuracy"] for run in row["runs"] if "balanced_accuracy" in (run["test"] or {})]
    return fmean(values) if values else None


def _shown(value: float, metric: str, *, unit: bool = True) -> str:
    """Return the value of a metric as text: accuracy in %, a loss as it is."""
    return f"{100 * value:.2f}{' %' if unit else ''}" if metric == "accuracy" else f"{value:.4f}"


def _difference(row: Row) -> list[Cell]:
    """Return the difference with its interval, and the p value; green or red only if a difference is shown."""
    if "difference" not in row:
        return [Cell(MISSING)] * 2
    kinds: dict[str, Literal["good", "bad"]] = {"better": "good", "worse": "bad"}
    kind: Literal["", "good", "bad"] = kinds.get(row["verdict"], "")
    text = f"{statistics.difference_text(row)}{statistics.mark(row)}"
    p = row.get("p_holm")
    return [Cell(text, sort=row["difference"], kind=kind), Cell(probability(p), sort=MISSING if p is None else p)]


def probability(value: float | None) -> str:
    """Return a p value as text, with three decimal places; a dash for None.

    Args:
        value: from 0 to 1, or None.

    >>> probability(0.0312), probability(1e-9)
    ('0.031', '< 0.001')
    """
    if value is None:
        return MISSING
    # A p value of "0.000" would look like certainty.
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _number(value: float | None, form: str) -> Cell:
    """Return a number in a format as a cell; a dash for None."""
    return Cell(MISSING) if value is None else Cell(f"{value:{form}}", sort=value)


def _memory(row: Row, group: dict[str, Any]) -> Cell:
    """Return the memory of a step and, if the group has it, the growth of the process, in MB."""
    # One cell for both: with a column of its own the table would not fit into 1280 pixels.
    step, growth = row["step_memory_bytes"] / 1e6, row.get("memory_growth_bytes")
    if not has_growth(group):
        return _number(step, ".2f")
    return Cell(f"{step:.2f} / {MISSING if growth is None else f'{growth / 1e6:.0f}'}", sort=step)


def command_line(arguments: Sequence[str]) -> str:
    """Return a command line of bpfree with its arguments quoted for the shell.

    Args:
        arguments: the arguments after "bpfree".

    >>> command_line(["compare", "net.hidden=[16]"])
    "bpfree compare 'net.hidden=[16]'"
    """
    return shlex.join(["bpfree", *arguments])
