"""Write the generated parts of pages: options from the code, figures from results.md, and tables of comparisons.

    python docs/fill.py

The script replaces the text between `<!-- options -->` and `<!-- /options -->`, and between `<!-- figures -->` and
`<!-- /figures -->`, in the pages of the rules. In config.md it replaces what is between `<!-- net -->` and
`<!-- /net -->`, and so on for each part of a config. In rules/README.md it writes which rules can do a task. In
README.md and results/README.md it writes what `bpfree compare` printed for the comparisons whose compare.json is in
results/. In choose.md it writes tables of rules that trained one net, from results.md. The rest of a page is written by
hand.
"""

import json
import re
from pathlib import Path

from bpfree.cli.catalog import KINDS, SECTIONS, Kind, describe_in_a_line, keys, options
from bpfree.cli.compared import WIDTH, lines
from bpfree.rules import RULES
from bpfree.spec import REQUIRED, Option
from bpfree.types import ALL_TASKS

DOCS = Path(__file__).parent
_NONE = "This rule has no options."
_KINDS = {kind.plural: kind for kind in KINDS}
COMPARISONS = {"demo": DOCS.parent / "README.md", "mnist": DOCS / "results" / "README.md"}
"""The name of a file in results/, and the page that shows it."""
Row = tuple[str, str, str, str]  # data, config, test accuracy %, seeds
ONE_NET = {
    "mlp": ("mnist", "backprop", r"1,796,010"),
    "conv": ("cifar10", "backprop", r"620,810"),
    "black_box": ("mnist", None, r"25,450"),
    "noprop": ("mnist", "backprop_denoiser", r"[\d,]+"),
}
"""Tables of choose.md: the data, the config of the baseline, and how many parameters the net has."""
BY_DEPTH = (
    "`backprop`",
    "`dfa`",
    "`drtp`, update: fused",
    "`mono_forward`",
    "`mono_forward`, update: fused",
    "`predsim`",
)


def main() -> None:
    """Rewrite the page of every rule in RULES, config.md, and the pages with comparisons."""
    rows = measured((DOCS / "results.md").read_text(encoding="utf-8"))
    for name in RULES:
        page = DOCS / "rules" / f"{name}.md"
        page.write_text(filled(page.read_text(encoding="utf-8"), name, rows), encoding="utf-8")
    page = DOCS / "config.md"
    page.write_text(reference(page.read_text(encoding="utf-8")), encoding="utf-8")
    page = DOCS / "rules" / "README.md"
    page.write_text(_between(page.read_text(encoding="utf-8"), "tasks", _by_task()), encoding="utf-8")
    for name, page in COMPARISONS.items():
        page.write_text(with_comparison(page.read_text(encoding="utf-8"), name), encoding="utf-8")
    page = DOCS / "choose.md"
    results = (DOCS / "results.md").read_text(encoding="utf-8")
    page.write_text(choice(page.read_text(encoding="utf-8"), results), encoding="utf-8")


def choice(text: str, results: str) -> str:
    """Return choose.md with tables of the measurements in results.md."""
    for name in ONE_NET:
        text = _between(text, name, _one_net(results, name))
    return _between(text, "depth", _by_depth(results))


def _one_net(results: str, name: str) -> str:
    """Return the rules that trained one net, the best first, with differences and ratios to the baseline."""
    data, baseline, parameters = ONE_NET[name]
    cells = r"`(\w+)` \| ([\d.]+(?: ± [\d.]+)?) \| (\d+) \| (\d+) \| ([\d,]+) \| ([\d.]+)"
    rows = re.findall(rf"^\| {data} \| {cells} \| {parameters} \|", results, re.MULTILINE)
    if name == "noprop":
        rows = [row for row in rows if row[0] == baseline or row[0].startswith("noprop_")]
    unit = next((row for row in rows if row[0] == baseline), None)
    heads = ["config", "test accuracy, %", *(["difference"] if unit else []), "seeds", "epochs"]
    heads += ["CPU time, ratio", "memory, ratio"] if unit else ["CPU s", "memory, MB"]
    return _table(heads, [_cells(row, unit) for row in sorted(rows, key=lambda row: -float(row[1].split()[0]))])


def _cells(row: list[str], unit: list[str] | None) -> list[str]:
    config, accuracy, seeds, epochs, seconds, memory = row
    rule = next(rule for rule in RULES if belongs(config, rule))
    shown = [f"[`{config}`](rules/{rule}.md)", accuracy]
    if not unit:
        return [*shown, seeds, epochs, seconds, memory]
    difference = "baseline" if row == unit else f"{float(accuracy.split()[0]) - float(unit[1].split()[0]):+.2f}"
    ratios = [_number(mine) / _number(theirs) for mine, theirs in zip(row[4:], unit[4:], strict=True)]
    return [*shown, difference, seeds, epochs, *(f"{ratio:.2g}" for ratio in ratios)]


def _number(cell: str) -> float:
    return float(cell.replace(",", ""))


def _by_depth(results: str) -> str:
    """Return the memory of a step by depth: the second number of each cell of the table in results.md."""
    section = results.partition("## Memory by depth")[2].partition("\n## ")[0]
    lines = re.findall(r"^\|(.*)\|$", section, re.MULTILINE)
    heads, _, *rows = [[cell.strip() for cell in line.split("|")] for line in lines]
    return _table(
        heads, [[row[0], *(cell.partition(" / ")[2] for cell in row[1:])] for row in rows if row[0] in BY_DEPTH]
    )


def _by_task() -> str:
    """Return the rules that can do each task."""
    able = {task: [f"`{name}`" for name, rule in RULES.items() if task in rule.tasks] for task in ALL_TASKS}
    rows = [[f"`{task}`", "all" if len(names) == len(RULES) else ", ".join(names)] for task, names in able.items()]
    return _table(["task", "rules that can do it"], rows)


def filled(text: str, name: str, rows: list[Row]) -> str:
    """Return the page of a rule with its current options and figures."""
    text = _between(text, "options", _options(options(_KINDS["rules"], name), types=False) or _NONE)
    shipped = [row for row in rows if belongs(row[1], name)]
    return _between(
        text, "figures", _table(["data", "config", "test accuracy, %", "seeds"], shipped) or "No figures yet."
    )


def with_comparison(text: str, name: str) -> str:
    """Return a page with what `bpfree compare` printed for a comparison."""
    record = json.loads((DOCS / "results" / f"{name}.json").read_text(encoding="utf-8"))
    printed = "\n".join(line.plain.rstrip() for group in record["groups"] for line in lines(group, WIDTH))
    return _between(text, name, f"```\n{printed}\n```")


def reference(text: str) -> str:
    """Return config.md with the keys and options of today."""
    for section in SECTIONS:
        text = _between(text, section, _options(keys(section)))
    for plural, kind in _KINDS.items():
        if plural != "rules":  # each rule has a page
            parts = [_entry(kind, name) for name in kind.table]
            text = _between(text, plural, "\n\n".join(parts))
    return text


def _entry(kind: Kind, name: str) -> str:
    line = f"### {kind.name} `{name}`\n\n{describe_in_a_line(kind.table[name])}"
    found = options(kind, name)
    return f"{line}\n\n{_options(found)}" if found else line


def belongs(config: str, rule: str) -> bool:
    """True if a config belongs to the rule: `dfa` to dfa, `drtp_conv` to drtp, `vgg8b_predsim` to predsim."""
    fitting = [name for name in RULES if config == name or config.startswith(f"{name}_") or config.endswith(f"_{name}")]
    return bool(fitting) and max(fitting, key=len) == rule


def measured(results: str) -> list[Row]:
    """Return the rows of the table of accuracies in results.md."""
    return re.findall(r"^\| (\w+) \| `(\w+)` \| ([\d.]+(?: ± [\d.]+)?) \| (\d+) \|", results, re.MULTILINE)


def _options(found: list[Option], *, types: bool = True) -> str:
    """Return a table of options, with or without their types."""
    heads = ["option", "default", *(["type"] if types else []), "meaning"]
    rows = [
        (f"`{o.name}`", o.default if o.default == REQUIRED else f"`{o.default}`", *([o.type] * types), o.meaning)
        for o in found
    ]
    return _table(heads, rows)


def _table(heads: list[str], rows: list) -> str:
    if not rows:
        return ""
    lines = [heads, ["---"] * len(heads), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _between(text: str, mark: str, content: str) -> str:
    inner = f"\n\n{content}\n\n"
    place = rf"(<!-- {mark} -->).*?(<!-- /{mark} -->)"
    filled, places = re.subn(place, lambda m: m[1] + inner + m[2], text, flags=re.DOTALL)
    if places != 1:  # without this check a page that lost its marks would count as filled, with any text
        raise LookupError(f"found {places} places between <!-- {mark} --> and <!-- /{mark} -->, allowed: one")
    return filled


if __name__ == "__main__":
    main()
