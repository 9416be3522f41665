"""Plain English where it can be measured: how docstrings begin, how long they are, and phrases that confuse readers."""

import ast
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

import bpfree

PACKAGE = Path(bpfree.__file__).parent
ROOMS = sorted({path.relative_to(PACKAGE).parts[0] for path in PACKAGE.rglob("*.py")})
FIRST = re.compile(
    r"(?:Of|In|With|From|For|To|By|At|On|As|What|Where|When|How|Whether|Who|Those|That|These|This|Which|One|It|Its|Their"
    r"|All|None|Within|See|Nothing|The same)\b"
)
PHRASES = {
    re.compile(
        r"(?<![Tt]here )\b(?:is|are|was|were|be) no (?!longer|more|larger|smaller|less)"
    ): "write 'is not a ...' or 'has no ...'",
    re.compile(r"\buntold\b|\bthe told\b|\bof one's own\b|\bnought\b|\bwhereof\b|\bthereof\b"): "use a common word",
}
FEWEST_WORDS = 4
TEXT = (tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", -1))  # the last: Python 3.12


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """The line and text of each docstring of a file."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            yield getattr(node, "lineno", 1), text


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """The line and text of each string and comment of a file."""
    with tokenize.open(path) as file:
        for token in tokenize.generate_tokens(file.readline):
            if token.type in (tokenize.STRING, tokenize.COMMENT) or token.type == getattr(
                tokenize, "FSTRING_MIDDLE", -1
            ):
                yield token.start[0], token.string


def violations(path: Path) -> Iterator[str]:
    place = path.relative_to(PACKAGE.parent)
    for line, text in docstrings(path):
        first = text.splitlines()[0]
        if FIRST.match(first):
            yield f"{place}:{line}: begin with what it is or does, not with a bare '{first.split()[0]}': {first}"
        if len(first.split()) < FEWEST_WORDS:
            yield f"{place}:{line}: fewer than {FEWEST_WORDS} words: {first}"
    for line, text in prose(path):
        for pattern, cure in PHRASES.items():
            if match := pattern.search(text):
                yield f"{place}:{line}: '{match.group(0)}': {cure}"


@pytest.mark.parametrize("room", ROOMS)
def test_docstrings_and_messages_are_plain(room):
    place = PACKAGE / room
    files = [place] if place.is_file() else sorted(place.rglob("*.py"))
    found = [each for path in files for each in violations(path)]
    assert not found, "\n".join(found)


ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *(ROOT / "docs").rglob("*.md"))
    if path.name != "ledger.md"  # it is written by `bpfree ledger`
}
PAGE_PHRASES = PHRASES | {
    re.compile(r"\bof (?:its|their) own\b"): "write 'its own ...'",
    re.compile(r"\b(?:all the same|as it were|by and by|anew|goes? by)\b"): "use a common word",
    re.compile(r"(?:^|[.!?] )(?:Of|Whoever|Those who|Who|Whom|Whose|None but|Nothing but)\b(?![^.!?]*\?)"): (
        "begin with the subject of the sentence"
    ),
}
MOST_WORDS = 40


def paragraphs(page: Path) -> Iterator[str]:
    """The paragraphs, headings and list items of a page, each on one line; code, tables and links are cut out."""
    text = re.sub(
        r"^```.*?^```|^<!--.*?-->$|^( {4}|\|).*?$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    text = re.sub(r"`[^`]*`", "`code`", re.sub(r"\]\([^)]*\)", "]", text))
    for block in re.split(r"\n\s*\n|\n(?=- |\d+\. |#)", text):
        if block.strip():
            yield " ".join(re.sub(r"^(- |\d+\. |#+ )", "", block.strip()).split())


def page_violations(page: Path) -> Iterator[str]:
    for paragraph in paragraphs(page):
        for pattern, cure in PAGE_PHRASES.items():
            if match := pattern.search(paragraph):
                yield f"'{match.group(0)}': {cure}: {paragraph[:100]}"
        for sentence in re.split(r"(?<=[.!?:;])\s+", paragraph):
            if (words := len(sentence.split())) > MOST_WORDS:
                yield f"a sentence of {words} words: {sentence}"


@pytest.mark.parametrize("name", PAGES)
def test_pages_are_plain(name):
    wrong = list(page_violations(PAGES[name]))
    assert not wrong, f"{name}:\n" + "\n".join(wrong)
