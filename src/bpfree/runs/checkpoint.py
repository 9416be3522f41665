"""Save and load a training. A checkpoint is a folder that is whole or absent; loading one executes no code.

weights.safetensors     the net's state_dict
rule.safetensors        the rule's: feedback matrices, heads
optimizer.safetensors   tensors of the optimiser's state, as "<parameter>.<name>"
state.json              everything else: counters, the optimiser's and the schedule's plain values, config, data
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

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bpfree.disk.atomic import refuse_to_replace, sync, write_error
from bpfree.errors import UserError
from bpfree.runs import optimizer_state, saved
from bpfree.runs.saved import FORMAT, State
from bpfree.training.trainer import Trainer

_FILES = ("weights.safetensors", "rule.safetensors", "optimizer.safetensors", "state.json")
_SCHEDULE = ("last_epoch", "_step_count", "_last_lr")  # what of a schedule changes while training


def save(trainer: Trainer, folder: Path, extra: dict[str, Any]) -> None:
    """Write a checkpoint, replacing the one of that name as a whole.

    Args:
        extra: plain values to keep beside the training's own, such as the preprocessing.

    Raises:
        UserError: it cannot be written; the one of that name stays.
    """
    with _new_folder(folder) as temporary:
        _save_weights(trainer, temporary)
        tensors, plain = optimizer_state.split(trainer.optimizer)
        _save_tensors(tensors, temporary / _FILES[2])
        state = {
            "format": FORMAT,
            "progress": asdict(trainer.progress),
            "total_steps": trainer.total_steps,
            "precision": trainer.precision,
            "channels_last": trainer.channels_last,
            "optimizer": plain,
            "schedule": {name: getattr(trainer.schedule, name) for name in _SCHEDULE},
            **extra,
        }
        (temporary / _FILES[3]).write_text(json.dumps(state, indent=1), encoding="utf-8")


def copy(checkpoint: Path, folder: Path, weights_of: Trainer | None = None) -> None:
    """Copy a checkpoint into another run folder, there with the weights that a trainer holds now, if one is given.

    Raises:
        UserError: there is no such checkpoint, or it cannot be written.
    """
    found = locate(checkpoint)
    with _new_folder(folder / checkpoint.name) as temporary:
        for name in _FILES:
            shutil.copyfile(found / name, temporary / name)
        if weights_of is not None:
            _save_weights(weights_of, temporary)


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to fill, which then takes the place of the one of that name.

    Raises:
        UserError: it cannot be written; the one of that name stays.
    """
    refuse_to_replace(folder, folder=True)
    try:
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            temporary.chmod(0o755)
            yield temporary
            for path in (*temporary.iterdir(), temporary):
                sync(path)
            _replace_folder(temporary, folder)
            sync(folder.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise write_error(folder, error) from error


def _save_weights(trainer: Trainer, folder: Path) -> None:
    _save_tensors(trainer.net.state_dict(), folder / _FILES[0])
    _save_tensors(trainer.rule.state_dict(), folder / _FILES[1])


def _replace_folder(new: Path, folder: Path) -> None:
    """No system renames a folder over a full one, so the old one steps aside first; `locate` looks there too."""
    old = _aside(folder)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)
    os.replace(new, folder)
    shutil.rmtree(old, ignore_errors=True)


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def clean(folder: Path, names: Sequence[str]) -> None:
    """Remove what a killed process left half-written under these names, once a checkpoint is loaded or saved."""
    for name in names:
        for leftover in folder.glob(f".{name}.*"):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


def exists(folder: Path) -> bool:
    """Whether `locate` finds the checkpoint of that name."""
    return any(os.path.isdir(path) for path in (folder, _aside(folder)))  # noqa: PTH112 - False for a name too long


def locate(folder: Path) -> Path:
    """Where the checkpoint of that name is, also if a process was killed while replacing it.

    Raises:
        UserError: there is none, or a file of it is missing.
    """
    found = next((path for path in (folder, _aside(folder)) if path.is_dir()), None)
    if found is None:
        raise UserError(f"{folder.parent}: no checkpoint {folder.name} in it, allowed: a run that trained at all")
    if missing := [name for name in _FILES if not (found / name).is_file()]:  # a pipe or a device is no file either
        raise UserError(f"{found}: damaged checkpoint, {', '.join(missing)} is missing")
    return found


def read_state(folder: Path) -> State:
    """state.json of a checkpoint.

    Raises:
        UserError: there is none, it is damaged, or of another format.
    """
    return saved.read_state(locate(folder) / _FILES[3])


def load(trainer: Trainer, folder: Path) -> None:
    """Put a checkpoint into a bound trainer of the same net, rule and optimiser.

    Raises:
        UserError: the checkpoint is missing, damaged, or of another net, rule or optimiser, or of other data.
    """
    state = read_state(folder)
    if state.total_steps != trainer.total_steps:
        raise UserError(
            f"{folder}: the run was begun for {state.total_steps} steps, and now it would have "
            f"{trainer.total_steps}: its data or epochs are others. Resume with those it was begun with, or train in "
            "another folder"
        )
    if len(state.schedule.last_lr) != len(trainer.optimizer.param_groups):
        raise UserError(f"{folder}: damaged: schedule._last_lr is of another optimiser")
    load_weights(trainer, folder)
    try:
        tensors = _load_tensors(locate(folder) / _FILES[2])
        optimizer_state.join(trainer.optimizer, tensors, state.optimizer)
    except (ValueError, KeyError) as error:  # UserError among them
        raise UserError(f"{folder}: its optimiser does not fit the config ({_line(error)})") from error
    trainer.schedule.load_state_dict(state.schedule.model_dump(by_alias=True))
    trainer.continue_from(state.progress.load())


def load_weights(trainer: Trainer, folder: Path) -> None:
    """Put only the weights of net and rule into a bound trainer.

    Raises:
        UserError: the checkpoint is missing, damaged, or of another net or rule.
    """
    found = locate(folder)
    for module, file in ((trainer.net, _FILES[0]), (trainer.rule, _FILES[1])):
        try:
            module.load_state_dict(_load_tensors(found / file))
        except RuntimeError as error:
            raise UserError(
                f"{found / file}: its tensors do not fit {type(module).__name__}: {_line(error)}"
            ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _save_tensors(tensors: dict[str, Any], path: Path) -> None:
    # Copies: safetensors refuses tensors that share memory, and writes only contiguous ones.
    save_file({k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}, path)


def _load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:  # whatever a header may say
        raise UserError(f"{path}: damaged ({_line(error)})") from error
