"""Save and load the state of a training. A checkpoint is a folder that is whole or absent; loading executes no code.

weights.safetensors     the net's state_dict
rule.safetensors        the rule's state_dict: feedback matrices, heads
optimizer.safetensors   tensors of the optimiser's state, as "<parameter>.<name>"
state.json              all plain values: counters, those of the optimiser and the schedule, config, preprocessing

Where several processes train different parts, each writes files of its own; see `bpfree.runs.tensor_files`.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from bpfree.disk.atomic import refuse_to_replace, sync, write_error
from bpfree.errors import UserError
from bpfree.runs import optimizer_state, saved, tensor_files
from bpfree.runs.saved import FORMAT, State
from bpfree.runs.tensor_files import files_of
from bpfree.training.trainer import Trainer

STATE = "state.json"
_SCHEDULE = ("last_epoch", "_step_count", "_last_lr")  # the values of a schedule that change while training


def save(trainer: Trainer, folder: Path, extra: dict[str, Any]) -> None:
    """Write a checkpoint. It replaces an older one of that name as a whole.

    Args:
        trainer: bound to its rule.
        folder: the checkpoint, such as `runs/mine/last.ckpt`.
        extra: plain values to keep beside those of the training, such as the preprocessing.

    Raises:
        UserError: the checkpoint cannot be written; an older one stays.
    """
    with _new_folder(folder) as temporary:
        plain = tensor_files.write(trainer, temporary)
        state = {
            "format": FORMAT,
            "progress": asdict(trainer.progress),
            "total_steps": trainer.total_steps,
            "precision": trainer.precision,
            "channels_last": trainer.channels_last,
            "optimizer": plain,
            # Only these values: when a schedule is loaded, torch writes whatever it finds into the schedule's
            # attributes.
            "schedule": {name: getattr(trainer.schedule, name) for name in _SCHEDULE},
            **extra,
        }
        (temporary / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")


def copy(checkpoint: Path, folder: Path, weights_of: Trainer | None = None) -> None:
    """Copy a checkpoint into another run folder, with its own weights or those of a trainer.

    Args:
        checkpoint: the folder that is copied.
        folder: the run folder that gets the copy, under the same name.
        weights_of: the trainer whose present weights the copy gets; None copies the weights of the checkpoint.

    Raises:
        UserError: the checkpoint does not exist, or the copy cannot be written.
    """
    source = locate(checkpoint)
    with _new_folder(folder / checkpoint.name) as temporary:
        # The known files one by one: what else lies in the folder may be anybody's, and stays behind.
        for path in (source / STATE, *(path for name in tensor_files.NAMES for path in files_of(source, name))):
            shutil.copyfile(path, temporary / path.name)
        if weights_of is not None:
            tensor_files.write_weights(weights_of, temporary)


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder to fill. After the block it takes the place of the older folder of that name.

    Raises:
        UserError: the folder cannot be written; the older one stays.
    """
    refuse_to_replace(folder, folder=True)
    try:
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            temporary.chmod(0o755)  # mkdtemp makes a folder that only its owner can read
            yield temporary
            # On the disk before the rename: after a power cut, a final name must not lead to half a file.
            for path in (*temporary.iterdir(), temporary):
                sync(path)
            _replace_folder(temporary, folder)
            sync(folder.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise write_error(folder, error) from error


def _replace_folder(new: Path, folder: Path) -> None:
    """Rename the new folder to the final name.

    No system renames a folder over one that has files, so the old folder is renamed first. If the process is killed
    between the two renames, `locate` finds the old folder under its second name.
    """
    old = _aside(folder)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)
    os.replace(new, folder)
    shutil.rmtree(old, ignore_errors=True)


def _aside(folder: Path) -> Path:
    """Return the second name of a checkpoint, which it has while a new one takes its place."""
    return folder.with_name(f".{folder.name}.old")


def clean(folder: Path, names: Sequence[str]) -> None:
    """Remove the temporary files and folders that a killed process left behind.

    Only call it when a checkpoint was loaded or saved: until then, one of them may be the only copy of the run.

    Args:
        folder: the run folder, or its folder of pictures.
        names: final names, or patterns of them; others, which may be the user's, stay.
    """
    for name in names:
        for leftover in folder.glob(f".{name}.*"):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


def exists(folder: Path) -> bool:
    """Return True if `locate` finds the checkpoint.

    Args:
        folder: the checkpoint, such as `runs/mine/last.ckpt`.
    """
    return any(os.path.isdir(path) for path in (folder, _aside(folder)))  # noqa: PTH112 - False for a name too long


def locate(folder: Path) -> Path:
    """Return the folder that holds a checkpoint: it has another name if a process was killed while replacing it.

    Args:
        folder: the checkpoint, such as `runs/mine/last.ckpt`.

    Raises:
        UserError: the checkpoint does not exist, or a file of it is missing.
    """
    place = next((path for path in (folder, _aside(folder)) if path.is_dir()), None)
    if place is None:
        raise UserError(f"{folder.parent}: no checkpoint {folder.name} in it, allowed: a run that trained at all")
    missing = [name for name in tensor_files.NAMES if not files_of(place, name)]
    if missing := missing + ([] if (place / STATE).is_file() else [STATE]):
        raise UserError(f"{place}: damaged checkpoint, {', '.join(missing)} is missing")
    return place


def read_state(folder: Path) -> State:
    """Read state.json of a checkpoint.

    Args:
        folder: the checkpoint.

    Returns:
        Its values, checked.

    Raises:
        UserError: the checkpoint does not exist, is damaged, or it has another format.
    """
    return saved.read_state(locate(folder) / STATE)


def load(trainer: Trainer, folder: Path) -> None:
    """Load a checkpoint into a trainer, which then continues that training to the same bits.

    Args:
        trainer: bound, with the same net, rule and optimiser, and as many steps in all.
        folder: the checkpoint.

    Raises:
        UserError: the checkpoint is missing, damaged, or of another net, rule or optimiser, or of other data.
    """
    state = read_state(folder)
    if state.total_steps != trainer.total_steps:
        raise UserError(
            f"{folder}: the run was begun for {state.total_steps} steps, and now it would have "
            f"{trainer.total_steps}: its data or epochs have changed. Resume with those it was begun with, or train in "
            "another folder"
        )
    if len(state.schedule.last_lr) != len(trainer.optimizer.param_groups):
        raise UserError(f"{folder}: damaged: schedule._last_lr is of another optimiser")
    load_weights(trainer, folder)
    try:
        tensors = tensor_files.read(locate(folder), tensor_files.NAMES[2])
        optimizer_state.join(trainer.optimizer, tensors, state.optimizer, *trainer.parameter_numbers)
    except (ValueError, KeyError) as error:  # UserError among them
        raise UserError(f"{folder}: its optimiser does not fit the config ({_line(error)})") from error
    trainer.schedule.load_state_dict(state.schedule.model_dump(by_alias=True))
    trainer.continue_from(state.progress.load())


def load_weights(trainer: Trainer, folder: Path) -> None:
    """Load only the weights of net and rule into a trainer.

    Args:
        trainer: bound, with the same net and rule.
        folder: the checkpoint.

    Raises:
        UserError: the checkpoint is missing, damaged, or of another net or rule.
    """
    place = locate(folder)
    for module, file in zip((trainer.net, trainer.rule), tensor_files.NAMES, strict=False):
        try:
            module.load_state_dict(tensor_files.read(place, file))
        except RuntimeError as error:
            raise UserError(
                f"{place / file}: its tensors do not fit {type(module).__name__}: {_line(error)}"
            ) from error


def _line(error: Exception) -> str:
    """Return the text of an error in one line, not too long: torch names every tensor that does not fit."""
    return " ".join(str(error).split())[:300]
