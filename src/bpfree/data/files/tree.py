"""List the files in a folder of class folders, with the class and split of each. No file is opened."""

import os
from pathlib import Path
from typing import NamedTuple

from bpfree.errors import UserError

SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
"""Names of folders that are splits, in small letters, and the name of the split."""

_JUNK = {
    "thumbs.db",
    "desktop.ini",
    "__macosx",
}  # files that operating systems leave behind; hidden files are skipped, too
_SHOWN = 5


class SplitFiles(NamedTuple):
    """The files of one split, ordered by class and path.

    Attributes:
        files: paths below the root.
        labels: the class of each file, a place among `Tree.classes`.
    """

    files: list[str]
    labels: list[int]


class Tree(NamedTuple):
    """The classes and splits in a folder of images.

    Attributes:
        classes: the names of the class folders, in order; a label is a place among them.
        splits: the files by split: "train", and "validation" and "test" if they have folders.
    """

    classes: tuple[str, ...]
    splits: dict[str, SplitFiles]


def read_tree(root: Path) -> Tree:
    """List the files in root/class/**, or in root/train/class/**, root/val/class/** and root/test/class/**.

    Folders are splits if one of them is called train and contains folders. Otherwise a class may be called train.

    Args:
        root: the folder.

    Raises:
        UserError: the folder does not exist, has fewer than two classes, has a class without files, or has a split
            folder that does not fit.
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
    """Return the folder of each split, train first; raise UserError for a folder that is not a split."""
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


def _list(root: Path, place: Path, classes: tuple[str, ...]) -> SplitFiles:
    """Return the files of a split.

    Raises:
        UserError: the split has no files, or has classes that training does not have.
    """
    number = {name: i for i, name in enumerate(classes)}
    folders = _folders(place)
    if others := [folder.name for folder in folders if folder.name not in number]:
        raise UserError(f"data.path: found {_some(others)} in {place}, allowed: the classes of training")
    files: list[str] = []
    labels: list[int] = []
    for folder in folders:
        paths = _files(root, folder)
        files += paths
        labels += [number[folder.name]] * len(paths)
    if not files:
        raise UserError(f"data.path: found no files in the class folders of {place}, allowed: at least one image")
    return SplitFiles(files, labels)


def _folders(place: Path) -> list[Path]:
    """Return the folders in a folder, in order, without hidden ones and those of operating systems."""
    return sorted(folder for folder in place.iterdir() if folder.is_dir() and not _is_junk(folder.name))


def _files(root: Path, folder: Path) -> list[str]:
    """Return the paths of all files below a folder, in order."""
    paths: list[str] = []
    for place, folders, names in os.walk(folder):
        # In place, because os.walk goes into the folders that stay in its own list.
        folders[:] = [name for name in folders if not _is_junk(name)]
        below = os.path.relpath(place, root)
        paths += [os.path.join(below, name) for name in names if not _is_junk(name)]  # noqa: PTH118 -- thousands of them
    return sorted(paths)  # os.walk gives the order of the disk, which differs between machines


def _is_junk(name: str) -> bool:
    """Return True for hidden files and for files that operating systems leave behind."""
    return name.startswith(".") or name.lower() in _JUNK


def _some(names: list[str]) -> str:
    """Return the first few names as text, with the number of the others."""
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
