"""The order of the rooms of src/bpfree: imports point down, and no two rooms or modules import each other.

Every import counts: those in functions, and those for type checkers alone.
"""

import ast
import inspect
import subprocess
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest
from pydantic import BaseModel

import bpfree

PACKAGE = Path(bpfree.__file__).parent
ORDER = (  # from the bottom to the top; the rooms of one line do not import each other
    ("_version", "errors", "screen", "memory"),
    ("mesh",),
    ("noise",),
    ("disk", "inputs"),
    ("spec", "types"),
    ("nets", "data"),
    ("grad", "tasks"),
    ("rule",),
    ("local", "population"),
    ("diffusion",),
    ("rules",),
    ("training",),
    ("evolution", "trackers", "export"),
    ("pictures",),
    ("runs",),
    ("lab",),
    ("api", "hub", "sklearn"),
    ("serve",),
    ("cli",),
    ("__init__", "__main__"),
)
FLOOR = {room: floor for floor, rooms in enumerate(ORDER) for room in rooms}


def modules() -> dict[str, Path]:
    """The file of each module, by its name without "bpfree."; a package is named after its folder."""
    paths = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        paths[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return paths


MODULES = modules()


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """The line and name of each module of bpfree that a file imports."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "bpfree":
            package = (node.module or "").removeprefix("bpfree").removeprefix(".")
            for alias in node.names:
                module = f"{package}.{alias.name}".removeprefix(".")
                yield node.lineno, module if module in MODULES else package or "__init__"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == "bpfree":
                    yield node.lineno, alias.name.removeprefix("bpfree").removeprefix(".") or "__init__"


def room_of(module: str) -> str:
    return module.partition(".")[0]


def test_every_room_has_its_floor():
    assert {room_of(module) for module in MODULES} == set(FLOOR)


def test_imports_point_down():
    wrong = [
        f"{module}:{line} imports {other}"
        for module, path in MODULES.items()
        for line, other in imports(path)
        if room_of(module) != room_of(other) and FLOOR[room_of(other)] >= FLOOR[room_of(module)]
    ]
    assert not wrong, "these imports point up or sideways:\n" + "\n".join(wrong)


def test_no_modules_import_each_other_in_a_circle():
    """A package's `__init__` stands above its modules: a module that imports its own package by name counts too."""
    graph = {module: {other for _, other in imports(path)} for module, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def test_rules_do_not_import_each_other():
    sideways = [
        f"{module} imports {other}"
        for module, path in MODULES.items()
        if module.startswith("rules.")
        for _, other in imports(path)
        if other == "rules" or other.startswith("rules.")
    ]
    assert not sideways


def test_subpackages_of_a_room_do_not_import_each_other():
    """Of two folders in one room, one stands below the other."""
    folders = {
        (a, b)
        for module, path in MODULES.items()
        for _, other in imports(path)
        if (a := _folder(module)) != (b := _folder(other)) and room_of(module) == room_of(other)
    }
    both = sorted(f"{a} and {b}" for a, b in folders if (b, a) in folders and a < b)
    assert not both


def _folder(module: str) -> str:
    if MODULES[module].name == "__init__.py":
        return f"{module}.__init__"
    return module.rpartition(".")[0] or module


def test_there_are_few_rooms():
    """The first two levels fit on one page: folders and loose modules, and the benchmarks."""
    assert len(FLOOR) + 1 <= 34


def test_files_and_functions_are_small():
    long = [f"{path.relative_to(PACKAGE)}: {n} lines" for path in MODULES.values() if (n := _lines(path)) > 350]
    for path in MODULES.values():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef):
                doc = node.body[0] if ast.get_docstring(node) else None
                size = (node.end_lineno or 0) - node.lineno - ((doc.end_lineno or 0) - doc.lineno + 1 if doc else 0)
                if size > 60:
                    long.append(f"{path.relative_to(PACKAGE)}:{node.lineno}: {node.name} has {size} lines")
    assert not long


def _lines(path: Path) -> int:
    return len(path.read_text("utf-8").splitlines())


def test_no_constructor_takes_more_than_eight_arguments():
    """Sections of a config are exempt, and so is state that begins empty: nobody calls those with arguments.

    So are subclasses with the constructor of a library, such as torch's optimisers.
    """
    many = []
    for name in MODULES:
        if name == "__main__":
            continue
        for key, cls in vars(import_module(f"bpfree.{name}" if name != "__init__" else "bpfree")).items():
            if not isinstance(cls, type) or cls.__module__ != f"bpfree.{name}" or issubclass(cls, BaseModel):
                continue
            if not next(c for c in cls.__mro__ if "__init__" in vars(c)).__module__.startswith("bpfree"):
                continue
            if is_dataclass(cls) and all(f.default is not f.default_factory for f in fields(cls)):
                continue
            count = sum(p.kind is not p.VAR_KEYWORD for p in _parameters(cls))
            if count > 8:
                many.append(f"{name}.{key}: {count}")
    assert not many


def _parameters(cls: type) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(cls).parameters.values())
    except (ValueError, TypeError):
        return []


def test_the_package_holds_what_git_holds():
    """A folder that .gitignore names by mistake would be missing from a clone."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "."],
        cwd=PACKAGE,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("not a checkout")
    tracked = set(listed.stdout.splitlines())
    assert {str(path.relative_to(PACKAGE)) for path in MODULES.values()} <= tracked
