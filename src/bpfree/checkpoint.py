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
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bpfree.errors import UserError
from bpfree.state import Progress
from bpfree.trainer import Trainer

FORMAT = 2
_FILES = ("weights.safetensors", "rule.safetensors", "optimizer.safetensors", "state.json")
_SCHEDULE = ("last_epoch", "_step_count", "_last_lr")  # what of a schedule changes while training


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it: a reader sees the old file or the new one."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        temporary = Path(file.name)
    try:
        write(temporary)
        temporary.chmod(0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomically(path, lambda temporary: _write_synced(temporary, text))


def _write_synced(path: Path, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def save(trainer: Trainer, folder: Path, extra: dict[str, Any]) -> None:
    """Write a checkpoint, replacing the one of that name as a whole.

    Args:
        extra: plain values to keep beside the training's own, such as the preprocessing.
    """
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        temporary.chmod(0o755)
        _save_weights(trainer, temporary)
        tensors, plain = _split_optimizer(trainer.optimizer.state_dict())
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
        _write_synced(temporary / _FILES[3], json.dumps(state, indent=1))
        _replace_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def copy(checkpoint: Path, folder: Path, weights_of: Trainer | None = None) -> None:
    """Copy a checkpoint into another run folder, there with the weights that a trainer holds now, if one is given."""
    temporary = Path(tempfile.mkdtemp(dir=folder, prefix=f".{checkpoint.name}."))
    try:
        temporary.chmod(0o755)
        shutil.copytree(locate(checkpoint), temporary, dirs_exist_ok=True)
        if weights_of is not None:
            _save_weights(weights_of, temporary)
        _replace_folder(temporary, folder / checkpoint.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
    return folder.is_dir() or _aside(folder).is_dir()


def locate(folder: Path) -> Path:
    """Where the checkpoint of that name is, also if a process was killed while replacing it.

    Raises:
        UserError: there is none, or a file of it is missing.
    """
    found = next((path for path in (folder, _aside(folder)) if path.is_dir()), None)
    if found is None:
        raise UserError(f"{folder.parent}: no checkpoint {folder.name} in it, allowed: a run that trained at all")
    if missing := [name for name in _FILES if not (found / name).is_file()]:
        raise UserError(f"{found}: damaged checkpoint, {', '.join(missing)} is missing")
    return found


def read_state(folder: Path) -> dict[str, Any]:
    """state.json of a checkpoint.

    Raises:
        UserError: there is none, it is damaged, or of another format.
    """
    path = locate(folder) / "state.json"
    try:
        state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: damaged ({error})") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{path}: not a checkpoint of format {FORMAT}, which is what this version reads")
    needed = {"progress", "total_steps", "optimizer", "schedule", "preprocess", "given", "config"}
    if missing := sorted(needed - state.keys()):
        raise UserError(f"{path}: damaged, {', '.join(missing)} is missing")
    return state


def load(trainer: Trainer, folder: Path) -> None:
    """Put a checkpoint into a bound trainer of the same net, rule and optimiser.

    Raises:
        UserError: the checkpoint is missing, damaged, or of another net, rule or optimiser, or of other data.
    """
    state = read_state(folder)
    if state["total_steps"] != trainer.total_steps:
        raise UserError(
            f"{folder}: the run was begun for {state['total_steps']} steps, and now it would have "
            f"{trainer.total_steps}: its data or epochs are others. Resume with those it was begun with, or train in "
            "another folder"
        )
    load_weights(trainer, folder)
    optimizer = state["optimizer"]
    joined: dict[int, dict[str, Any]] = {int(i): dict(values) for i, values in optimizer["state"].items()}
    for key, tensor in _load_tensors(locate(folder) / "optimizer.safetensors").items():
        index, _, name = key.partition(".")
        joined.setdefault(int(index), {})[name] = tensor
    groups = [{k: tuple(v) if k == "betas" else v for k, v in group.items()} for group in optimizer["param_groups"]]
    try:
        trainer.optimizer.load_state_dict({"state": joined, "param_groups": groups})
    except (ValueError, KeyError) as error:
        raise UserError(f"{folder}: its optimiser does not fit the config ({error})") from error
    _restore_layouts(trainer.optimizer)
    trainer.schedule.load_state_dict(state["schedule"])
    trainer.progress = Progress(**state["progress"])


def _restore_layouts(optimizer: torch.optim.Optimizer) -> None:
    """Give state the memory order of its parameter again, channels_last for convolutions.

    Files do not know it, and fused optimisers walk parameter and state side by side as they lie in memory.
    """
    for p, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == p.shape:
                values[name] = torch.empty_like(p, dtype=value.dtype).copy_(value)


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
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged ({_line(error)})") from error


def _split_optimizer(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors: dict[str, Tensor] = {}
    plain: dict[int, dict[str, Any]] = {}
    for index, values in state["state"].items():
        plain[index] = {}
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value
            else:
                plain[index][name] = value
    return tensors, {"state": plain, "param_groups": state["param_groups"]}
