"""Files for a paper: the results as CSV and as a LaTeX table, and the figures as PDF and SVG."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from bpfree.disk.atomic import make_folder, write_atomically, write_text
from bpfree.lab import statistics
from bpfree.lab.compare.charts import chapters, file_name
from bpfree.lab.compare.families import by_net, is_black_box
from bpfree.lab.compare.measure import Row
from bpfree.lab.compare.page import probability, score

CSV, TEX = "results.csv", "results.tex"
_COLUMNS = (
    *("net", "name", "kind", "rule", "baseline", "parameters", "rule_parameters", "metric", "split", "seeds", "mean"),
    *("std", "difference", "interval_low", "interval_high", "p", "p_holm", "seeds_compared", "verdict"),
    *("cpu_seconds", "wall_seconds", "seconds_to_target", "step_memory_bytes", "peak_memory_bytes"),
    "memory_growth_bytes",
    *("samples_per_second", "queries", "energy_joules", "net_flops", "head_flops"),
)
_LATEX = str.maketrans(
    {
        **{letter: f"\\{letter}" for letter in "{}$&#%_"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "\n": " ",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        '"': r"\textquotedbl{}",
        "\u00b1": r"$\pm$",
        "\u2013": "--",
        "\u2026": r"\ldots{}",
    }
)
_HEAD = r"""% Written by bpfree. In the preamble: \usepackage[T1]{fontenc} and \usepackage{booktabs}.
% In a document with two columns, put it into table* instead of table.
% Names in letters that are not Latin need lualatex or xelatex, and a font that has them.
"""


def export(record: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the results of a comparison as files for a paper.

    The folder gets `results.csv`, `results.tex`, and each figure as PDF and SVG.

    Args:
        record: the values of compare.json.
        folder: gets the files; it is made.

    Returns:
        The paths of the files.

    Raises:
        UserError: a file cannot be written.
    """
    make_folder(folder)
    groups = record["groups"]
    write_text(folder / CSV, as_csv(groups))
    write_text(folder / TEX, _HEAD + "\n".join(as_latex(group) for group in groups))
    written = [folder / CSV, folder / TEX]
    taken: dict[str, int] = {}
    for group in groups:
        begin = "" if len(groups) == 1 else f"{file_name(group['name'])}-"
        for drawn in (drawn for chapter in chapters(group) for drawn in chapter.figures):
            name = f"{begin}{drawn.name}"
            taken[name] = taken.get(name, 0) + 1  # two nets may have a family of rules in common
            number = f"-{taken[name]}" if taken[name] > 1 else ""
            written += _write_figure(drawn.figure, folder / f"{name}{number}")
    return written


def as_csv(groups: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows of all groups as CSV, with one line for each row; a value that was not measured is empty.

    Args:
        groups: the groups of the record.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, ["group", *_COLUMNS], extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for group in groups:
        for row in group["rows"]:
            low, high = row.get("interval", (None, None))
            of_runs = {"seeds": len(row["runs"]), "split": row["runs"][0]["split"] if row["runs"] else None}
            writer.writerow({**row, **of_runs, "group": group["name"], "interval_low": low, "interval_high": high})
    return text.getvalue()


def as_latex(group: Mapping[str, Any]) -> str:
    """Return the results of a group as a LaTeX table in the style of booktabs, with the rows of each net together.

    Args:
        group: a group of the record.
    """
    rows = [row for row in group["rows"] if row["runs"]]
    if not rows:
        return f"% {group['name']}: no run was finished.\n".replace("\n", " ") + "\n"
    accuracy, split = rows[0]["metric"] == "accuracy", rows[0]["runs"][0]["split"]
    titles = ["rule", "parameters", f"{split} {rows[0]['metric']}{', %' if accuracy else ''}", "difference", "$p$"]
    titles += ["CPU s", "MB", *(["queries"] if any(map(is_black_box, rows)) else [])]
    titles += ["J"] if any(row.get("energy_joules") for row in rows) else []
    head = [title if title == "$p$" else latex(title) for title in titles]
    lines = [
        *(r"\begin{table}", r"\centering", r"\footnotesize", r"\setlength{\tabcolsep}{3pt}"),
        rf"\caption{{{latex(_caption(group))}}}",
        rf"\label{{tab:{file_name(group['name'])}}}",
        *(rf"\begin{{tabular}}{{l{'r' * (len(titles) - 1)}}}", r"\toprule"),
        *(" & ".join(head) + r" \\", *_body(rows, titles)),
        *(r"\bottomrule", r"\end{tabular}", r"\end{table}", ""),
    ]
    return "\n".join(lines)


def latex(text: str) -> str:
    r"""Return a text in a form that LaTeX prints unchanged.

    Args:
        text: any text, such as the name of a row.

    Example:
        >>> latex("mono_forward, 50 % & more")
        'mono\\_forward, 50 \\% \\& more'
    """
    return text.translate(_LATEX)


def _caption(group: Mapping[str, Any]) -> str:
    """Return the caption of a table: what was trained, and what differences and marks mean."""
    config = group["config"]
    epochs = config["train"]["epochs"]
    return " ".join([f"{config['data']['name']}, {epochs} epochs.", *statistics.footer(group["rows"])])


def _body(rows: Sequence[Row], titles: Sequence[str]) -> Iterator[str]:
    """Yield the lines of a table: for each net a heading and its rows."""
    for net, of_net in by_net(rows).items():
        yield r"\midrule"
        yield rf"\multicolumn{{{len(titles)}}}{{l}}{{\emph{{{latex(net)}}}}} \\"
        for row in of_net:
            yield " & ".join(_cells(row, titles)) + r" \\"


def _cells(row: Row, titles: Sequence[str]) -> list[str]:
    """Return the cells of a row."""
    p = row.get("p_holm")
    cells = [
        latex(row["name"]),
        f"{row['parameters'] + row['rule_parameters']:,.0f}".replace(",", r"\,"),
        latex(score(row)),
        _number(statistics.difference_text(row)) + (r"$^{*}$" if statistics.mark(row) else ""),
        "" if p is None else probability(p).replace("<", "$<$"),
        f"{row['cpu_seconds']:.1f}",
        f"{row['step_memory_bytes'] / 1e6:.2f}",
    ]
    for title, key, form in (("queries", "queries", ",.0f"), ("J", "energy_joules", ".1f")):
        if title in titles:
            value = row.get(key)
            cells.append("" if value is None else f"{value:{form}}".replace(",", r"\,"))
    return cells


def _number(text: str) -> str:
    """Return a number, or an interval of numbers, with signs of minus instead of hyphens."""
    return text.replace("-", "$-$").replace("+", "$+$")


def _write_figure(figure: Figure, path: Path) -> list[Path]:
    """Write a figure as PDF and SVG. The same figure gives the same bytes: no dates, and no random names."""
    metadata: dict[str, dict[str, Any]] = {
        "pdf": {"CreationDate": None, "ModDate": None},
        "svg": {"Date": None, "Creator": None},
    }
    written = []
    # 42: TrueType, which journals ask for; "none" leaves the text of an SVG as text.
    with mpl.rc_context({"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "bpfree"}):
        for kind, values in metadata.items():
            target = path.with_name(f"{path.name}.{kind}")

            def save(temporary: Any, kind: str = kind, values: dict[str, Any] = values) -> None:
                figure.savefig(temporary, format=kind, metadata=values)

            write_atomically(target, save)
            written.append(target)
    return written
