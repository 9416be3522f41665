"""The columns on locality in README.md and docs/rules/README.md are what `certify` measures."""

from pathlib import Path

import pytest

from bpfree import UserError
from bpfree.lab.certify.table import COLUMNS, COMMAND, cells, main, refreshed, rule_rows
from bpfree.rules import RULES

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/rules/README.md")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("page", PAGES)
def test_the_table_of_rules_says_what_is_measured(page, rule):
    lines = (ROOT / page).read_text(encoding="utf-8").split("\n")
    rows = [(lines[number], headings, names) for number, headings, names in rule_rows(lines) if rule in names]
    assert len(rows) == 1, f"{page}: found {len(rows)} rows for `{rule}` in the table of rules, allowed: one"
    ((line, headings, names),) = rows
    for heading in COLUMNS.keys() & set(headings):
        written = [cell.strip() for cell in line.strip("|").split("|")][headings.index(heading)]
        measured = cells(rule)[heading]
        assert written == measured or (len(names) > 1 and f"`{rule}`: {measured}" in written.split("; ")), (
            f"{page}: the cell '{heading}' of `{rule}` is '{written}', but certify measures '{measured}'. Run {COMMAND}"
        )


def test_only_measured_cells_are_rewritten(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# Rules\n\n| name | differentiated through | waits for the output | by hand |\n|---|---|---|---|\n"
        "| [`drtp`](x.md) | ? | ? | stays |\n| [`fa`](x.md) [`drtp`](x.md) | ? | ? | stays too |\n\n"
        "| name | by hand |\n|---|---|\n| [`dfa`](x.md) | ? |\n"
    )
    main([str(page)])
    assert page.read_text() == (
        "# Rules\n\n| name | differentiated through | waits for the output | by hand |\n|---|---|---|---|\n"
        "| [`drtp`](x.md) | one segment | no | stays |\n"
        "| [`fa`](x.md) [`drtp`](x.md) | `fa`: the whole net; `drtp`: one segment | `fa`: yes; `drtp`: no | stays too |"
        "\n\n| name | by hand |\n|---|---|\n| [`dfa`](x.md) | ? |\n"
    )
    assert refreshed(page.read_text()) == page.read_text()
    page.write_text("nothing here")
    with pytest.raises(UserError, match="found no table of rules"):
        main([str(page)])
