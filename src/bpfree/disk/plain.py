"""Read small text, YAML and JSON files that a stranger may have written, within limits and without executing them.

Only regular files are read, since reading a pipe may never end. YAML has limits of size, of depth, and of the size that
its aliases expand to.
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from bpfree.disk.paths import open_regular
from bpfree.errors import UserError

LARGEST_YAML = 256 << 10  # bytes of text; the largest shipped file has a tenth of that
LARGEST_JSON = 1 << 30
_NODES = 50_000  # values of a YAML document, with all aliases written out
_DEPTH = 50  # lists and mappings within each other


def read_text(path: Path, largest: int) -> str:
    """Return the text of a regular file.

    Args:
        path: the file.
        largest: most bytes that the file may have.

    Raises:
        FileNotFoundError: the file does not exist.
        UserError: the file is not a regular one, cannot be read, is too large, or is not text in UTF-8.
    """
    try:
        with open_regular(path) as file:
            content = file.read(largest + 1)  # not stat().st_size: the file may grow, and /proc files have size 0
        if len(content) > largest:
            raise UserError(f"{path}: larger than {largest:,} bytes, allowed: at most that many")
        return content.decode("utf-8")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file in UTF-8 ({error.reason} at byte {error.start})") from error


def read_yaml(path: Path) -> Any:
    """Return the plain values of a YAML file.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: the file does not exist.
        UserError: the file cannot be read, is not YAML, or is beyond the limits.
    """
    return parse_yaml(read_text(path, LARGEST_YAML), str(path))


def parse_yaml(text: str, where: str) -> Any:
    """Return the plain values of a YAML text: mappings with text as keys, lists, text, numbers, dates.

    Args:
        text: one document.
        where: the text is from, for errors.

    Raises:
        UserError: the text is not YAML, repeats a key, or is beyond the limits.

    >>> parse_yaml("train: {epochs: 3, epochs: 4}", "my.yaml")
    Traceback (most recent call last):
    ...
    bpfree.errors.UserError: my.yaml: line 1: key 'epochs' is there twice. Keep one of them
    """
    if len(text) > LARGEST_YAML:
        raise UserError(f"{where}: larger than {LARGEST_YAML:,} characters, allowed: at most that many")
    try:
        return _Loader(text).get_single_data()
    except _RefusedError as error:
        raise UserError(f"{where}: {error}") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the last two come from impossible numbers and dates
        raise UserError(f"{where}: not YAML: {' '.join(str(error).split())}") from error


class _RefusedError(Exception):
    """A document is YAML, but of a kind that is not read here."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with limits.

    It counts while it composes nodes, before it builds values: a few lines of aliases of aliases would otherwise fill
    the memory.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._open = 0  # how many lists and mappings are around the present node
        self._sizes: dict[int, tuple[int, int]] = {}  # by id of the node: its number of values, and its depth

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a node; for an alias, return the node that it stands for."""
        is_alias = self.check_event(yaml.AliasEvent)
        line = self.peek_event().start_mark.line + 1  # type: ignore[no-untyped-call]
        self._open += 1
        if self._open > _DEPTH:
            raise _RefusedError(f"line {line}: more than {_DEPTH} lists and mappings within each other")
        node = super().compose_node(parent, index)
        assert node is not None
        self._open -= 1
        if is_alias and id(node) not in self._sizes:
            raise _RefusedError(f"line {line}: an alias within the value that it stands for")  # it would never end
        if not is_alias:
            self._sizes[id(node)] = self._measure(node, line)
        return node

    def _measure(self, node: yaml.Node, line: int) -> tuple[int, int]:
        """Return the number of values and the depth of a node, from those of the nodes in it."""
        inner: Iterable[yaml.Node] = ()
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
            inner = [child for pair in node.value for child in pair]
        elif isinstance(node, yaml.SequenceNode):
            inner = node.value
        sizes = [self._sizes[id(child)] for child in inner]
        count, depth = 1 + sum(n for n, _ in sizes), 1 + max((d for _, d in sizes), default=0)
        if count > _NODES or depth > _DEPTH:
            raise _RefusedError(f"line {line}: its aliases grow to more than {_NODES:,} values or {_DEPTH} levels")
        return count, depth


def _check_keys(node: yaml.MappingNode) -> None:
    """Refuse a mapping with a key that is not text, or that is there twice."""
    seen = set()
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
            # YAML reads keys such as no and 3 as other types, and a config would then lack the key that it shows.
            found = key.value if isinstance(key, yaml.ScalarNode) else "a list or a mapping"
            raise _RefusedError(f'line {line}: found {found} as a key, allowed: text. Write it in quotes: "..."')
        if key.value in seen:
            raise _RefusedError(f"line {line}: key '{key.value}' is there twice. Keep one of them")
        seen.add(key.value)


def read_json(path: Path) -> Any:
    """Return the values of a JSON file.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: the file does not exist.
        UserError: the file cannot be read, is not JSON, or is nested too deeply.
    """
    return parse_json(read_text(path, LARGEST_JSON), str(path))


def parse_json(text: str, where: str) -> Any:
    """Return the values of a JSON text.

    Args:
        text: the whole text.
        where: the text is from, for errors.

    Raises:
        UserError: the text is not JSON, or is nested too deeply.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: damaged: not JSON ({' '.join(str(error).split())})") from error
    if is_deep(value):
        raise UserError(f"{where}: damaged: more than {_DEPTH} lists and mappings within each other")
    return value


def is_deep(value: Any) -> bool:
    """Return True if lists and mappings are nested more deeply than 50 levels.

    Args:
        value: plain values. A recursive walk could exceed Python's stack, so the levels are taken one by one.
    """
    level = [value]
    for _ in range(_DEPTH):
        inner = [list(v.values()) if isinstance(v, dict) else v for v in level if isinstance(v, dict | list)]
        level = [child for children in inner for child in children if isinstance(child, dict | list)]
        if not level:
            return False
    return True


def is_number(value: Any) -> bool:
    """Return True if a plain value is a finite number; True and False are not numbers here."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
