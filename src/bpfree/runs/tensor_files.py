"""The tensors of a checkpoint: one file for each kind, or one for each kind and process that trained a part.

weights.safetensors                       by one process
weights-1-of-2.safetensors, ...-2-of-2    the parts of two processes; together they hold the same names

Any number of processes can read either form.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bpfree.disk.atomic import write_error
from bpfree.errors import UserError
from bpfree.runs import optimizer_state
from bpfree.training.trainer import Trainer

NAMES = ("weights.safetensors", "rule.safetensors", "optimizer.safetensors")
_PART = re.compile(r"-(\d{1,6})-of-(\d{1,6})\.safetensors")


def write(trainer: Trainer, folder: Path | None) -> dict[str, Any]:
    """Write the net's and the rule's tensors and those of the optimiser into an empty folder.

    In blocks mode all processes call it, and each writes its parts.

    Args:
        trainer: bound.
        folder: the folder; None in all processes but the first, which tells them the folder.

    Returns:
        The plain values of the optimiser, of all processes.

    Raises:
        UserError: a process cannot write its files, or writes them to another disk.
    """
    mesh = trainer.mesh
    tensors, plain = optimizer_state.split(trainer.optimizer, *trainer.parameter_numbers)
    if mesh.apart is None or mesh.world is None:
        assert folder is not None
        for name, values in zip(NAMES, (trainer.net.state_dict(), trainer.rule.state_dict(), tensors), strict=True):
            save(values, folder / name)
        return plain
    folder = Path(mesh.world.same(str(folder)))
    lane, own, error = mesh.apart.lane, mesh.apart.own_tensors, None
    try:
        if mesh.apart.is_first_replica:
            parts = (_own(trainer.net, own), _own(trainer.rule, own), tensors)
            for name, values in zip(NAMES, parts, strict=True):
                save(values, folder / part_name(name, lane.group.rank + 1, lane.group.size))
    except (OSError, SafetensorError) as failure:
        error = str(write_error(folder, failure))
    found = mesh.world.all_of((error, plain["state"]))
    if told := next((text for text, _ in found if text), None):
        raise UserError(told)
    if mesh.is_first:
        _refuse_another_disk(folder, lane.group.size)
    plain["state"] = {number: values for _, state in found for number, values in state.items()}
    return plain


def write_weights(trainer: Trainer, folder: Path) -> None:
    """Write the whole tensors of net and rule.

    Args:
        trainer: bound.
        folder: the folder. Parts of these tensors that are there are removed.
    """
    for name, module in zip(NAMES, (trainer.net, trainer.rule), strict=False):
        for part in parts_of(folder, name):
            part.unlink()
        save(module.state_dict(), folder / name)


def _own(module: nn.Module, own: set[int]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in module.state_dict(keep_vars=True).items() if id(tensor) in own}


def _refuse_another_disk(folder: Path, parts: int) -> None:
    expected = [part_name(NAMES[0], part, parts) for part in range(1, parts + 1)]
    if missing := [name for name in expected if not (folder / name).is_file()]:
        raise UserError(
            f"{folder}: found no {missing[0]}, so another process writes to another disk. With mesh blocks, give all "
            "processes a run folder on a disk that they share"
        )


def part_name(name: str, part: int, parts: int) -> str:
    """Return the name of the file of a part.

    >>> part_name("rule.safetensors", 1, 2)
    'rule-1-of-2.safetensors'
    """
    return f"{name.removesuffix('.safetensors')}-{part}-of-{parts}.safetensors"


def parts_of(folder: Path, name: str) -> list[Path]:
    """Return the files of all parts, sorted; none if they are not complete.

    Args:
        folder: the checkpoint.
        name: one of NAMES.
    """
    found = sorted(folder.glob(f"{name.removesuffix('.safetensors')}-*-of-*.safetensors"))
    numbers = [match.groups() for path in found if (match := _PART.search(path.name)) and path.is_file()]
    if not numbers:
        return []
    count = int(numbers[0][1])
    complete = {(str(part), str(count)) for part in range(1, min(count, len(numbers)) + 1)} == set(numbers)
    return found if complete and len(numbers) == count else []


def files_of(folder: Path, name: str) -> list[Path]:
    """Return the file of this name, or those of its parts; none if they are missing.

    Args:
        folder: the checkpoint.
        name: one of NAMES.
    """
    whole = folder / name  # is_file is False for a pipe or a device, too
    return [whole] if whole.is_file() else parts_of(folder, name)


def read(folder: Path, name: str) -> dict[str, Tensor]:
    """Return the tensors of a file, or of all its parts.

    Args:
        folder: the checkpoint.
        name: one of NAMES.

    Raises:
        UserError: a file is damaged.
    """
    return {key: tensor for path in files_of(folder, name) for key, tensor in _load(path)}


def save(tensors: dict[str, Any], path: Path) -> None:
    """Write tensors to a file."""
    # Copies: safetensors refuses tensors that share memory, as tied weights do, and writes only contiguous ones.
    save_file({k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}, path)


def _load(path: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        # This format holds numbers only. A file of torch.save is a pickle, which may execute code.
        yield from load_file(path).items()
    # A damaged header can cause each of these.
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"{path}: damaged ({' '.join(str(error).split())[:300]})") from error
