"""Find the runs that a user means by folders: run folders, folders of runs, and comparisons."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bpfree.disk.plain import read_json
from bpfree.errors import UserError
from bpfree.runs.folder import CONFIG

_COMPARISON = "compare.json"
_SHOWN = 6  # runs that a page shows before the user chooses


class Found(NamedTuple):
    """A run folder that was found.

    Attributes:
        id: the name of the run in addresses and on the page; different for each run.
        folder: the run folder.
        shown: True if the page shows the run before the user chooses.
    """

    id: str
    folder: Path
    shown: bool


def find_runs(paths: Sequence[Path]) -> list[Found]:
    """Return the runs in folders, each with a name of its own.

    A folder of runs stands for all of them. The folder of a comparison stands for the first seed of each of its rows;
    of those the rules and the baselines that they are compared with are shown first.

    Args:
        paths: run folders, folders of runs, or folders of comparisons.

    Raises:
        UserError: a folder does not exist or holds no run.
    """
    found: dict[Path, tuple[Path, bool | None]] = {}
    for path in paths:
        for folder, wanted in _inside(path):
            found.setdefault(folder.resolve(), (folder, wanted))  # a run that is named in two ways is one run
    taken: set[str] = set()
    runs: list[Found] = []
    for folder, wanted in found.values():
        name = next(name for name in _names(folder) if name not in taken)
        taken.add(name)
        runs.append(Found(name, folder, wanted if wanted is not None else len(runs) < _SHOWN))
    return runs


def _names(folder: Path) -> Sequence[str]:
    """Return names for a run, the plain one first; the last one is never taken."""
    # Signs that mean something in an address would have to be escaped there.
    plain = "".join(c if c.isalnum() or c in "-_." else "-" for c in folder.resolve().name).strip(".") or "run"
    return [plain, *(f"{plain}-{number}" for number in range(2, 10_000))]


def _inside(path: Path) -> list[tuple[Path, bool | None]]:
    """Return the run folders in a folder, and for those of a comparison whether they are shown first."""
    if not path.exists():
        raise UserError(f"run: {path} does not exist. `bpfree train` makes runs")
    # A run folder is one run, even if somebody has put other runs into it.
    if (path / CONFIG).exists():
        return [(path, None)]
    if (path / _COMPARISON).exists():
        return _of_comparison(path)
    inside = sorted(config.parent for config in path.glob(f"*/{CONFIG}"))
    if not inside:
        raise UserError(f"run: {path} holds no run. Give a run folder, or a folder of runs. `bpfree train` makes runs")
    return [(folder, None) for folder in inside]


def _of_comparison(path: Path) -> list[tuple[Path, bool | None]]:
    """Return the first run of each row of a comparison. compare.json may be anybody's, so no value is relied on."""
    found: list[tuple[Path, bool | None]] = []
    for group in _list(_get(read_json(path / _COMPARISON), "groups")):
        for row in _list(_get(group, "rows")):
            folders = [_get(run, "folder") for run in _list(_get(row, "runs"))]
            # A path of the file must not lead out of the folder that the user named.
            inside = [path / folder for folder in folders if isinstance(folder, str) and _is_below(path / folder, path)]
            first = next((folder for folder in inside if (folder / CONFIG).exists()), None)
            if first is not None:
                found.append((first, _get(row, "kind") == "rule" or _get(row, "name") == _get(group, "baseline")))
    if not found:
        raise UserError(f"run: {path} holds a comparison without run folders. Give the folder of a run")
    return found


def _is_below(folder: Path, path: Path) -> bool:
    return folder.resolve().is_relative_to(path.resolve())


def _get(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
