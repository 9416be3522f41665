"""The templates of a page. A `Markup` is text that is HTML already; everything else is escaped."""

from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def block(name: str, *args: Any) -> Markup:
    """Return what a macro of blocks.html.j2 makes of its arguments."""
    # Arguments are escaped inside the macro; the result of a macro is a Markup, which a page includes as it is.
    made: Markup = getattr(templates().get_template("blocks.html.j2").module, name)(*args)
    return made


@cache
def templates() -> Environment:
    """Return the templates, which escape every text that is not a Markup."""
    loader = PackageLoader("bpfree.lab.report")
    # StrictUndefined: a misspelt name in a template is an error, and not an empty text in a report.
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


@cache
def file(name: str) -> Markup:
    """Return a style sheet or script of bpfree without escaping; never call this with text of a user."""
    return Markup((resources.files("bpfree.lab.report") / "templates" / name).read_text(encoding="utf-8"))
