"""The report of a comparison: one HTML page that needs nothing else."""

import shlex
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from bpfree.lab.compare.measure import Row
from bpfree.lab.report.html import (
    Cell,
    Column,
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
from bpfree.pictures.plots import label

MISSING = "\u2013"  # a dash
_SURE = 0.05
_FEW = 10  # rows whose bands can be told apart
_PRICES = {"cpu_seconds": ("CPU seconds", 1.0), "step_memory_bytes": ("peak memory of a step, MB", 1e-6)}
_CAUTION = (
    "Rules share net, data order and epochs; options, optimiser and schedule are those of the shipped config of each "
    "rule for this data set, where there is one. Small gaps between rules tuned by hand mean little. p by seeds is "
    "that of a paired t-test, which speaks of the rule and needs several seeds; p by samples is McNemar's exact test "
    "on what the first net and backprop's each have right alone, which speaks of these two nets. Neither is corrected "
    "for the number of rules. CPU seconds are of training and validation, one thread a run; peak memory is what one "
    "step takes beyond parameters and optimiser state, counted at the allocator."
)


def write_comparison(record: dict[str, Any], path: Path) -> Path:
    """Write the report of a record, as in compare.json."""
    groups = record["groups"]
    sections = [section for group in groups for section in _of_group(group, alone=len(groups) == 1)]
    about: list[Markup] = [facts({"date": record["date"], **record["machine"]})]
    if record["command"]:
        about = [paragraph("The same again; runs that are there are not run again:"), code(record["command"]), *about]
    sections.append(Section("How this was measured", [paragraph(_CAUTION), *about]))
    data = ", ".join(dict.fromkeys(group["config"]["data"]["name"] for group in groups))
    lead = _lead(groups[0]) if len(groups) == 1 else f"{len(groups)} comparisons, each with its own net and data."
    return write_page(path, page(f"Learning rules on {data}, beside backprop", lead=lead, sections=sections))


def _lead(group: dict[str, Any]) -> str:
    trained = [row for row in group["rows"] if row["runs"]]
    if not trained:
        return "No run came to its end."
    seeds = max(len(row["runs"]) for row in trained)
    times = "seed" if seeds == 1 else "seeds"
    net = group["config"]["net"]
    described = _spec_in_words(net)
    epochs = group["config"]["train"]["epochs"]
    return f"{len(trained)} ways to train {described}: {epochs} epochs, {seeds} {times}."


def _of_group(group: dict[str, Any], *, alone: bool) -> list[Section]:
    title = "" if alone else f"{group['name']}: "
    rows: list[Row] = group["rows"]
    trained = [row for row in rows if row["runs"]]
    sections = [
        Section(f"{title}Results", [table(columns(group), [_cells(row, group) for row in rows])], _legend(group))
    ]
    if trained:
        curves = [_curves(trained, by) for by in ("epoch", "CPU seconds")]
        costs = [_costs(trained, cost) for cost in _PRICES]
        sections += [Section(f"{title}Learning curves", curves), Section(f"{title}What it costs", costs)]
    configs = [details(row["name"], [code(yaml.safe_dump(row["config"], sort_keys=False))]) for row in rows]
    return [*sections, Section(f"{title}Configs", configs)]


def _legend(group: dict[str, Any]) -> str:
    if "target" not in group:
        return ""
    row = next(row for row in group["rows"] if row["runs"])
    watched = row["runs"][0]["watched"]
    sign = "at most" if row["metric"] == "loss" else "at least"
    return f"Target: {watched} {row['metric']} {sign} {_shown(group['target'], row['metric'])}."


def columns(group: dict[str, Any]) -> list[Column]:
    """Those of the table of results."""
    row = next((row for row in group["rows"] if row["runs"]), None)
    metric = "accuracy" if row is None else row["metric"]
    split = "test" if row is None else row["runs"][0]["split"]
    unit = "%" if metric == "accuracy" else ""
    return [
        Column("rule", numeric=False),
        Column(f"{split} {metric}", f"{unit}, mean ± deviation".strip(", ")),
        *([Column("balanced accuracy", "%")] if is_skewed(group) else []),
        Column("to backprop", "points" if unit else ""),
        Column("p", "by seeds"),
        Column("p", "by samples"),
        Column("CPU", "s"),
        Column("wall", "s"),
        Column("to target", "CPU s"),
        Column("peak memory", "MB a step"),
        Column("parameters", "with the rule's"),
        Column("samples/s"),
    ]


def _cells(row: Row, group: dict[str, Any]) -> list[Cell]:
    notes = "; ".join([*row["notes"], *(f"not trained: {error}" for error in row.get("errors", []))])
    name = Cell(row["name"], note=notes, kind="" if row["runs"] else "muted")
    if not row["runs"]:
        return [name, *[Cell(MISSING, kind="muted")] * (len(columns(group)) - 1)]
    own = row["parameters"] + row["rule_parameters"]
    reached, runs = row["reached_target"], len(row["runs"])
    to_target = row.get("seconds_to_target")
    return [
        name,
        Cell(score(row), sort=row["mean"], kind="best" if _is_best(row, group["rows"]) else ""),
        *([Cell(balanced(row), sort=_balanced(row))] if is_skewed(group) else []),
        _difference(row),
        _p(row.get("p_seeds")),
        _p(row.get("p_samples")),
        _number(row["cpu_seconds"], ".1f"),
        _number(row["wall_seconds"], ".1f"),
        Cell(MISSING, note=f"{reached} of {runs}" if reached else "")
        if to_target is None
        else _number(to_target, ".1f"),
        _number(row["step_memory_bytes"] / 1e6, ".2f"),
        Cell(f"{own:,.0f}", sort=own),
        _number(row["samples_per_second"], ",.0f"),
    ]


def score(row: Row) -> str:
    """Mean and, for several seeds, their standard deviation, in the metric's unit."""
    mean = _shown(row["mean"], row["metric"], unit=False)
    return mean if row["std"] is None else f"{mean} ± {_shown(row['std'], row['metric'], unit=False)}"


def is_skewed(group: dict[str, Any]) -> bool:
    """Whether the classes of the training data differ in size, so that balanced accuracy says more than accuracy."""
    return bool(group["config"]["data"].get("skew"))


def balanced(row: Row) -> str:
    """Mean balanced accuracy on the test split in %, if there is one."""
    mean = _balanced(row)
    return MISSING if mean is None else f"{100 * mean:.2f}"


def _balanced(row: Row) -> float | None:
    values = [run["test"]["balanced_accuracy"] for run in row["runs"] if "balanced_accuracy" in (run["test"] or {})]
    return statistics.fmean(values) if values else None


def _shown(value: float, metric: str, *, unit: bool = True) -> str:
    return f"{100 * value:.2f}{' %' if unit else ''}" if metric == "accuracy" else f"{value:.4f}"


def _is_best(row: Row, rows: Sequence[Row]) -> bool:
    means = [other["mean"] for other in rows if other["runs"]]
    return bool(row["mean"] == (min(means) if row["metric"] == "loss" else max(means)))


def _difference(row: Row) -> Cell:
    if "difference" not in row:
        return Cell(MISSING)
    value, p = row["difference"], row.get("p_seeds", row.get("p_samples"))
    better = value < 0 if row["metric"] == "loss" else value > 0
    sure = p is not None and p < _SURE
    text = f"{100 * value:+.2f}" if row["metric"] == "accuracy" else f"{value:+.4f}"
    return Cell(text, sort=value, kind=("good" if better else "bad") if sure else "")


def _p(value: float | None) -> Cell:
    return Cell(probability(value), sort=value)


def probability(value: float | None) -> str:
    """In words, as far as it says anything."""
    if value is None:
        return MISSING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _number(value: float | None, form: str) -> Cell:
    return Cell(MISSING) if value is None else Cell(f"{value:{form}}", sort=value)


def _styles(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A colour for each row; from the twenty-first on they come again, dashed and with another marker."""
    colors = colormaps["tab10" if len(rows) <= 10 else "tab20"].colors  # type: ignore[attr-defined]
    again = len(colors) if len(rows) > 10 else len(rows)
    return [
        {"color": colors[n % len(colors)], "ls": "-" if n < again else "--", "marker": "o" if n < again else "s"}
        for n in range(len(rows))
    ]


def _curves(rows: Sequence[Row], by: str) -> Markup:
    """The watched metric, a mean over seeds; the band of few rules is from the lowest to the highest."""
    column = 0 if by == "epoch" else 1
    figure, axes = _sheet(rows)
    for row, style in zip(rows, _styles(rows), strict=True):
        x = _over_seeds(row, column, statistics.fmean)
        mean, low, high = (_over_seeds(row, 2, of) for of in (statistics.fmean, min, max))
        axes.plot(x, mean, lw=1.8, label=row["name"], **(style | {"marker": style["marker"] if len(x) == 1 else ""}))
        if len(rows) <= _FEW:
            axes.fill_between(x, low, high, color=style["color"], alpha=0.15, lw=0)
    first = rows[0]["runs"][0]
    label(axes, f"{first['watched']} {first['metric']}", x=by)
    _ticks(axes, logarithmic=by != "epoch")
    alt = f"{first['watched'].capitalize()} {first['metric']} of {len(rows)} rules over {by}, a line for each."
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=11)
    return picture(figure, alt=alt)


def _over_seeds(row: Row, column: int, of: Callable[[Sequence[float]], float]) -> list[float]:
    """A column of the curves, epoch by epoch, as far as all of them go."""
    epochs = zip(*(run["curve"] for run in row["runs"]), strict=False)
    return [of([point[column] for point in points]) for points in epochs]


def _costs(rows: Sequence[Row], cost: str) -> Markup:
    """The final metric, with its deviation, against what it costs, a dot for each rule."""
    name, scale = _PRICES[cost]
    figure, axes = _sheet(rows)
    for row, style in zip(rows, _styles(rows), strict=True):
        axes.errorbar(row[cost] * scale, row["mean"], yerr=row["std"] or 0, ms=9, label=row["name"], **style)
    first = rows[0]["runs"][0]
    label(axes, f"{first['split']} {first['metric']}", x=name)
    _ticks(axes, logarithmic=True)
    handles = [container[0] for container in axes.containers]
    names = [row["name"] for row in rows]
    axes.legend(handles, names, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=11)
    return picture(figure, alt=f"Final {first['metric']} of {len(rows)} rules against {name}.")


def _sheet(rows: Sequence[Row]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(10, max(4.6, 0.27 * len(rows) + 1)), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(alpha=0.3)
    return figure, axes


def _ticks(axes: Axes, *, logarithmic: bool) -> None:
    """Numbers as one reads them, few enough to stand apart."""
    if not logarithmic:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def command_line(arguments: Sequence[str]) -> str:
    """As one would type it."""
    return shlex.join(["bpfree", *arguments])


def _spec_in_words(spec: object) -> object:
    """A section as text, such as "denoiser (backbone conv (norm True), blocks 10)"; other values stay as they are."""
    if not isinstance(spec, Mapping):
        return spec
    options = ", ".join(f"{key} {_spec_in_words(value)}" for key, value in spec.items() if key != "name")
    return " ".join(str(part) for part in (spec.get("name"), f"({options})" if options else None) if part)
