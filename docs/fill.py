"""Fill what the pages of the rules take from elsewhere: options from the code, figures from results.md.

    python docs/fill.py

Everything between `<!-- options -->` or `<!-- figures -->` and its end is replaced; the rest is written by hand.
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
    """Rewrite the pages."""
    rows = measured((DOCS / "results.md").read_text(encoding="utf-8"))
    for name in RULES:
        page = DOCS / "rules" / f"{name}.md"
        page.write_text(filled(page.read_text(encoding="utf-8"), name, rows), encoding="utf-8")


def filled(text: str, name: str, rows: list[Row]) -> str:
    """A rule's page with its options and figures as they are now."""
    text = _between(text, "options", _table(["option", "default", "meaning"], options(RULES[name])))
    own = [row for row in rows if belongs(row[1], name)]
    return _between(text, "figures", _table(["data", "config", "test %", "seeds"], own) or "None yet.")


def belongs(config: str, rule: str) -> bool:
    """Whether a config is one of the rule: `dfa`, `drtp_conv` of drtp, `vgg8b_predsim` of predsim."""
    fitting = [name for name in RULES if config == name or config.startswith(f"{name}_") or config.endswith(f"_{name}")]
    return bool(fitting) and max(fitting, key=len) == rule


def measured(results: str) -> list[Row]:
    """The rows of the accuracy table in results.md."""
    return re.findall(r"^\| (\w+) \| `(\w+)` \| ([\d.]+(?: ± [\d.]+)?) \| (\d+) \|", results, re.MULTILINE)


def options(rule: type[Rule]) -> list[tuple[str, str, str]]:
    """Name, default and meaning of what the constructor takes, the last from the docstrings."""
    found = []
    for parameter in inspect.signature(rule).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD and issubclass(rule, BlackBoxRule):
            defaults = RUNNING | {"evaluator": rule().evaluator}  # spsa has another than the rest
            found += [(f"`{name}`", f"`{default}`", _meaning(rule, name)) for name, default in defaults.items()]
        if parameter.kind is not parameter.KEYWORD_ONLY:
            continue
        default = "`auto`" if parameter.name == "taps" else f"`{parameter.default}`"
        found.append((f"`{parameter.name}`", default, _meaning(rule, parameter.name)))
    return found


def _meaning(rule: type[Rule], option: str) -> str:
    for cls in rule.__mro__:
        doc = inspect.cleandoc(cls.__doc__ or "")
        if entry := re.search(rf"^    {option}: (.*?)(?=^    \S|^\S|\Z)", doc, re.MULTILINE | re.DOTALL):
            return " ".join(entry[1].split())
    raise LookupError(f"{rule.__name__}: no docstring tells of {option}")


def _table(heads: list[str], rows: list) -> str:
    if not rows:
        return ""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _between(text: str, mark: str, content: str) -> str:
    inner = f"\n\n{content or 'It has none.'}\n\n"
    place = rf"(<!-- {mark} -->).*?(<!-- /{mark} -->)"
    filled, places = re.subn(place, lambda m: m[1] + inner + m[2], text, flags=re.DOTALL)
    if places != 1:  # or a page that lost its marks would count as filled, whatever it says
        raise LookupError(f"found {places} places between <!-- {mark} --> and <!-- /{mark} -->, allowed: one")
    return filled


if __name__ == "__main__":
    main()
