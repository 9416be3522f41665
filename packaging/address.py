"""Write the address of the repository into pyproject.toml: project URLs, and absolute links in the page on PyPI.

The repository has no public address yet, so pyproject.toml has none. Whoever publishes it runs this once and commits
the change. The workflow release.yml runs it for every release, with the repository in which it runs:

    python packaging/address.py https://github.com/OWNER/NAME
"""

import re
import sys
from pathlib import Path

FILE = Path(__file__).parents[1] / "pyproject.toml"
URLS = """[project.urls]
Homepage = "{address}"
Documentation = "{address}/blob/HEAD/docs/"
Changelog = "{address}/blob/HEAD/CHANGELOG.md"
Issues = "{address}/issues"

"""


def addressed(text: str, address: str) -> str:
    """Return the text of pyproject.toml with the address; the text itself if it has project URLs already.

    Args:
        text: of pyproject.toml.
        address: of the repository, such as "https://github.com/OWNER/NAME".

    Raises:
        SystemExit: the address is not that of a web page, or the places to fill in are not there.
    """
    if "\n[project.urls]\n" in text:
        return text
    if not re.fullmatch(r"https://[\w.-]+(/[\w.-]+)+", address):
        raise SystemExit(f"address: found {address!r}, allowed: https://HOST/OWNER/NAME")
    places = {
        "[project.scripts]": URLS.format(address=address) + "[project.scripts]",
        r"replacement = '\1'": rf"replacement = '[\1]({address}/blob/v$HFPR_VERSION/\2)'",
    }
    for place, filled in places.items():
        if text.count(place) != 1:
            raise SystemExit(f"pyproject.toml: found {place!r} {text.count(place)} times, allowed: once")
        text = text.replace(place, filled)
    return text


if __name__ == "__main__":
    FILE.write_text(addressed(FILE.read_text("utf-8"), sys.argv[1].rstrip("/")), encoding="utf-8")
