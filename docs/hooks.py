"""Extend the build of the site: pages of files outside docs/, and a check of the API reference. mkdocs.yml names it.

Links between files of the repository work as they are written: a link that leaves docs/ leads to a page that shows the
file. Notebooks and the Markdown files of the root become pages of the site; a source file becomes a page with its text.
"""

import importlib
import inspect
import os
import posixpath
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter
from pymdownx.slugs import slugify

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
OF_ROOT = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
PUBLIC = (
    *("bpfree", "bpfree.data", "bpfree.mesh", "bpfree.nets", "bpfree.rules", "bpfree.sklearn", "bpfree.tasks"),
    "bpfree.trackers",
)
"""The modules whose names in `__all__` must be in the API reference."""
RANKS = {
    **dict.fromkeys(("own_net.md", "own_data.md", "memory.md", "gpu.md", "cite.md", "choose.md", "rules"), 2),
    **dict.fromkeys(("config.md", "api"), 0.5),
    **dict.fromkeys(("ledger.md", "CHANGELOG.md"), 0.1),
}
"""How much hits of search on a page or in a folder count, if not 1: guides come before lists that name everything."""
LANGUAGES = {".py": "python", ".yaml": "yaml", ".cff": "yaml", ".json": "json"}
_DOCTEST = re.compile(r"^( *)>>> .*\n(?:\1(?! ).+\n|\1\.\.\..*\n)*", re.MULTILINE)
_LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]*)?\)")


class Doctests(griffe.Extension):
    """An extension of griffe that shows the examples of docstrings, which are doctests, as code."""

    def on_instance(self, *, obj: griffe.Object, **_: object) -> None:
        """Put fences around the doctests of an object's docstring."""
        if obj.docstring is not None and ">>> " in obj.docstring.value:
            obj.docstring.value = _DOCTEST.sub(r"\1```pycon\n\g<0>\1```\n", obj.docstring.value + "\n")


def on_config(config: MkDocsConfig) -> None:
    """Give headings the anchors that GitHub gives them, so that one link works in both places."""
    config.mdx_configs["toc"]["slugify"] = slugify(case="lower")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of notebooks, of Markdown files in the root, and of other files that a page links to."""
    texts = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in DOCS.rglob("*.md")}
    for name in OF_ROOT:
        texts[name] = (ROOT / name).read_text("utf-8")
        files.append(File.generated(config, name, content=texts[name]))
    for path in sorted((ROOT / "examples").glob("*.ipynb")):
        texts[f"examples/{path.name}"] = _add_notebook(path, files, config)
    linked = {target for name, text in texts.items() for target in _targets(ROOT / name, text)}
    for path in sorted(linked):
        if path.suffix not in (".md", ".ipynb") and not path.is_relative_to(DOCS):
            files.append(File.generated(config, place_of(path), content=_listing(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links between files of the repository lead to their pages, and set the rank of the page in search."""
    if rank := RANKS.get(page.file.src_uri) or RANKS.get(posixpath.dirname(page.file.src_uri)):
        page.meta["search"] = {"boost": rank}
    source = source_of(page.file.src_uri)

    def moved(match: re.Match[str]) -> str:
        target = _target(source, match[1])
        if target is None:
            return match[0]
        place = posixpath.relpath(place_of(target), posixpath.dirname(page.file.src_uri))
        return f"]({place}{match[2] or ''})"

    return _LINK.sub(moved, markdown)


def on_post_build(config: MkDocsConfig) -> None:
    """Fail if a public name is not in the API reference, which shows only names with a docstring."""
    known = inventory(Path(config.site_dir))
    if missing := sorted(name for name, defined in public_names() if not {name, defined} & known):
        raise PluginError(
            f"docs/api: found no entry for {', '.join(missing)}. Give the name a docstring, and name it on a page of "
            "docs/api with ':::'"
        )


def source_of(src_uri: str) -> Path:
    """Return the file of the repository that a page of the site is made from."""
    if (DOCS / src_uri).exists():
        return DOCS / src_uri
    path = ROOT / src_uri
    return path.with_suffix(".ipynb") if src_uri.startswith("examples/") else path


def place_of(path: Path) -> str:
    """Return the place in the site, as in docs/, of the page that shows a file of the repository."""
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    name = path.relative_to(ROOT).as_posix()
    if name == "README.md":
        return "index.md"
    if path.suffix == ".ipynb":
        return f"{name.removesuffix('.ipynb')}.md"
    return name if name in OF_ROOT else f"files/{name}.md"


def public_names() -> Iterator[tuple[str, str]]:
    """Iterate over the names that the API reference must have, each with its name at the place of its definition.

    The two differ for a function that is named as its module, such as `bpfree.nets.mlp`, which then hides it.
    """
    for module in map(importlib.import_module, PUBLIC):
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.ismodule(thing) or name == "__version__":
                continue
            full = f"{module.__name__}.{name}"
            yield full, f"{thing.__module__}.{name}" if callable(thing) else full
            if inspect.isclass(thing):
                yield from ((f"{full}.{member}", f"{thing.__module__}.{name}.{member}") for member in _members(thing))


def inventory(site: Path) -> set[str]:
    """Return the names in the API reference of a built site, from its inventory in the format of Sphinx."""
    lines = (site / "objects.inv").read_bytes().split(b"\n", 4)
    return {line.split(" ")[0] for line in zlib.decompress(lines[4]).decode().splitlines()}


def _members(cls: type) -> Iterator[str]:
    """Iterate over the public methods and properties that a class defines itself."""
    for name, value in vars(cls).items():
        if not name.startswith("_") and isinstance(value, property | staticmethod | classmethod | type(_members)):
            yield name


def _targets(source: Path, text: str) -> Iterator[Path]:
    yield from (target for match in _LINK.finditer(text) if (target := _target(source, match[1])))


def _target(source: Path, link: str) -> Path | None:
    """Return the file of the repository that a link of a file leads to; None if there is no such file."""
    path = Path(os.path.normpath(source.parent / link))
    return path if path.is_file() and path.is_relative_to(ROOT) else None


def _add_notebook(path: Path, files: Files, config: MkDocsConfig) -> str:
    """Add the page of a notebook, and its pictures; return the text of the page."""
    text, resources = MarkdownExporter().from_filename(str(path))
    text = text.replace("![png](", f"![A picture of {path.stem}]({path.stem}_")
    for name, content in resources["outputs"].items():
        files.append(File.generated(config, f"examples/{path.stem}_{name}", content=content))
    note = f"*This page is the notebook `examples/{path.name}`, with the outputs of its last run.*\n"
    title, _, rest = text.strip().partition("\n")
    text = f"{title}\n\n{note}{rest}\n"
    files.append(File.generated(config, place_of(path), content=text))
    return text


def _listing(path: Path) -> str:
    """Return a page that shows the text of a file. Search does not find it, since it finds the API reference."""
    front = "---\nsearch:\n  exclude: true\nhide:\n  - toc\n---\n"
    language = LANGUAGES.get(path.suffix, "text")
    return f"{front}# `{path.relative_to(ROOT).as_posix()}`\n\n``````{language}\n{path.read_text('utf-8')}\n``````\n"
