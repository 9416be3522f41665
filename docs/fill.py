"""Write the generated parts of the pages of the rules: the options from the code, the figures from results.md.

    python docs/fill.py

The script replaces the text between `<!-- options -->` and `<!-- /options -->`, and between `<!-- figures -->` and
`<!-- /figures -->`. The rest of a page is written by hand.
"""

import inspect
import re
from pathlib import Path

from bpfree.population.rule import RUNNING, BlackBoxRule
from bpfree.rule import Rule
from bpfree.rules import RULES

DOCS = Path(__file__).parent
Row = tuple[str, str, str, str]  # data, config, test accuracy %, seeds


def main() -> None:
    """Rewrite the page of every rule in RULES."""
    rows = measured((DOCS / "results.md").read_text(encoding="utf-8"))
    for name in RULES:
        page = DOCS / "rules" / f"{name}.md"
        page.write_text(filled(page.read_text(encoding="utf-8"), name, rows), encoding="utf-8")


def filled(text: str, name: str, rows: list[Row]) -> str:
    """Return the page of a rule with its current options and figures."""
    text = _between(text, "options", _table(["option", "default", "meaning"], options(RULES[name])))
    shipped = [row for row in rows if belongs(row[1], name)]
    return _between(
        text, "figures", _table(["data", "config", "test accuracy, %", "seeds"], shipped) or "No figures yet."
    )


def belongs(config: str, rule: str) -> bool:
    """True if a config belongs to the rule: `dfa` to dfa, `drtp_conv` to drtp, `vgg8b_predsim` to predsim."""
    fitting = [name for name in RULES if config == name or config.startswith(f"{name}_") or config.endswith(f"_{name}")]
    return bool(fitting) and max(fitting, key=len) == rule


def measured(results: str) -> list[Row]:
    """Return the rows of the table of accuracies in results.md."""
    return re.findall(r"^\| (\w+) \| `(\w+)` \| ([\d.]+(?: ± [\d.]+)?) \| (\d+) \|", results, re.MULTILINE)


def options(rule: type[Rule]) -> list[tuple[str, str, str]]:
    """Return the name, default and meaning of each option of a rule; the meaning comes from the docstrings."""
    entries = []
    for parameter in inspect.signature(rule).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD and issubclass(rule, BlackBoxRule):
            defaults = RUNNING | {"evaluator": rule().evaluator}  # the default of spsa differs
            entries += [(f"`{name}`", f"`{default}`", _meaning(rule, name)) for name, default in defaults.items()]
        if parameter.kind is not parameter.KEYWORD_ONLY:
            continue
        default = "`auto`" if parameter.name == "taps" else f"`{parameter.default}`"
        entries.append((f"`{parameter.name}`", default, _meaning(rule, parameter.name)))
    return entries


def _meaning(rule: type[Rule], option: str) -> str:
    for cls in rule.__mro__:
        doc = inspect.cleandoc(cls.__doc__ or "")
        if entry := re.search(rf"^    {option}: (.*?)(?=^    \S|^\S|\Z)", doc, re.MULTILINE | re.DOTALL):
            return " ".join(entry[1].split())
    raise LookupError(f"{rule.__name__}: no docstring explains the option {option}")


def _table(heads: list[str], rows: list) -> str:
    if not rows:
        return ""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _between(text: str, mark: str, content: str) -> str:
    inner = f"\n\n{content or 'This rule has no options.'}\n\n"
    place = rf"(<!-- {mark} -->).*?(<!-- /{mark} -->)"
    filled, places = re.subn(place, lambda m: m[1] + inner + m[2], text, flags=re.DOTALL)
    if places != 1:  # without this check a page that lost its marks would count as filled, with any text
        raise LookupError(f"found {places} places between <!-- {mark} --> and <!-- /{mark} -->, allowed: one")
    return filled


if __name__ == "__main__":
    main()
