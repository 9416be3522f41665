"""A folder of class folders: which files it has, of which class and of which split. No file is opened."""

import os
from pathlib import Path
from typing import NamedTuple

from bpfree.errors import UserError

SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
"""Names of folders that are splits, in small letters, and which ones."""

_JUNK = {"thumbs.db", "desktop.ini", "__macosx"}  # what systems leave behind; hidden files likewise
_SHOWN = 5


class Listed(NamedTuple):
    """The files of one split, as paths below the root, ordered by class and path."""

    files: list[str]
    labels: list[int]


class Tree(NamedTuple):
    """What a folder holds.

    Attributes:
        classes: names of the class folders, in order; a label is a place in it.
        splits: "train", and "validation" and "test" if they have folders of their own.
    """

    classes: tuple[str, ...]
    splits: dict[str, Listed]


def read_tree(root: Path) -> Tree:
    """Files in root/class/**, or in root/train/class/**, root/val/class/** and root/test/class/**.

    Folders are splits if one of them is called train and holds folders itself; a class may be called train otherwise.

    Raises:
        UserError: there is no such folder, fewer than two classes, one without a file, or a split that does not fit.
    """
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing"
        raise UserError(f"data.path: found {found} at {root}, allowed: a folder of class folders")
    folders = _folders(root)
    train = next((folder for folder in folders if folder.name.lower() == "train"), None)
    places = {"train": root} if train is None or not _folders(train) else _splits(root, folders)
    classes = tuple(folder.name for folder in _folders(places["train"]))
    if len(classes) < 2:
        found = f"one, '{classes[0]}'" if classes else "none"
        raise UserError(
            f"data.path: found {found}, of class folders in {places['train']}, allowed: two or more, each with the "
            "images of a class"
        )
    splits = {name: _list(root, place, classes) for name, place in places.items()}
    empty = sorted(set(range(len(classes))) - set(splits["train"].labels))
    if empty:
        raise UserError(
            f"data.path: found no files in {_some([classes[i] for i in empty])} of {places['train']}, allowed: images "
            "in every class folder. Remove the empty ones"
        )
    return Tree(classes, splits)


def _splits(root: Path, folders: list[Path]) -> dict[str, Path]:
    places: dict[str, Path] = {}
    for folder in folders:
        name = SPLITS.get(folder.name.lower())
        if name is None or name in places:
            also = f" and {places[name].name}" if name in places else ""
            raise UserError(
                f"data.path: found the folder {folder.name}{also} beside train in {root}, allowed: train, one of val, "
                "valid and validation, and test. Move it elsewhere"
            )
        places[name] = folder
    return {"train": places.pop("train"), **places}


def _list(root: Path, place: Path, classes: tuple[str, ...]) -> Listed:
    """The files of a split.

    Raises:
        UserError: it has none, or classes that training has not.
    """
    number = {name: i for i, name in enumerate(classes)}
    folders = _folders(place)
    if others := [folder.name for folder in folders if folder.name not in number]:
        raise UserError(f"data.path: found {_some(others)} in {place}, allowed: the classes of training")
    files: list[str] = []
    labels: list[int] = []
    for folder in folders:
        own = _files(root, folder)
        files += own
        labels += [number[folder.name]] * len(own)
    if not files:
        raise UserError(f"data.path: found no files in the class folders of {place}, allowed: at least one image")
    return Listed(files, labels)


def _folders(place: Path) -> list[Path]:
    return sorted(folder for folder in place.iterdir() if folder.is_dir() and not _is_junk(folder.name))


def _files(root: Path, folder: Path) -> list[str]:
    """All files below a folder, in order."""
    found: list[str] = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not _is_junk(name)]
        below = os.path.relpath(place, root)
        found += [os.path.join(below, name) for name in names if not _is_junk(name)]  # noqa: PTH118 -- of thousands
    return sorted(found)


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name.lower() in _JUNK


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
