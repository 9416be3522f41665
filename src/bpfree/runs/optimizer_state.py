"""Split an optimiser's state into tensors and plain values, and join them again. A state that does not fit is refused.

Fused optimisers read parameter and state side by side in memory, without looking at shapes. A state of another shape
would make them read beyond its end.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from bpfree.errors import UserError, shown
from bpfree.runs.saved import SavedOptimizer


def split(
    optimizer: Optimizer, numbers: Sequence[int], all_numbers: Sequence[Sequence[int]]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split the state_dict of an optimiser into tensors and plain values.

    Args:
        optimizer: its state is read.
        numbers: the number of each of its parameters; where other processes train others, among those of all.
        all_numbers: for each group of parameters, the numbers in all processes.

    Returns:
        The tensors by "<number of the parameter>.<name>", and the rest of the state_dict.
    """
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    plain: dict[int, dict[str, Any]] = {}
    for place, values in state["state"].items():
        index = numbers[place]
        plain[index] = {}
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value
            else:
                plain[index][name] = value
    groups = [
        {**group, "params": list(all_of)} for group, all_of in zip(state["param_groups"], all_numbers, strict=True)
    ]
    return tensors, {"state": plain, "param_groups": groups}


def join(
    optimizer: Optimizer,
    tensors: dict[str, Tensor],
    plain: SavedOptimizer,
    numbers: Sequence[int],
    all_numbers: Sequence[Sequence[int]],
) -> None:
    """Load a state that `split` made into an optimiser of the same parameters.

    Args:
        optimizer: gets the state.
        tensors: by "<number of the parameter>.<name>".
        plain: the rest of the state_dict.
        numbers: the number of each of its parameters, and
        all_numbers: for each group those in all processes; see `split`. The state of others is left out.

    Raises:
        UserError: the state is of another optimiser or of other parameters, or is damaged.
    """
    state: dict[int, dict[str, Any]] = {index: dict(values) for index, values in plain.state.items()}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        # isdigit alone is True for digits of other scripts too, and int() refuses very long numbers with a ValueError.
        if not index.isascii() or not index.isdigit() or len(index) > 9:
            raise UserError(f"found a tensor '{key}', allowed: <number>.<name>")
        state.setdefault(int(index), {})[name] = tensor
    groups = _groups(optimizer, plain, all_numbers)
    everyone = {number for group in all_numbers for number in group}
    places = {number: place for place, number in enumerate(numbers)}
    others = everyone - places.keys()
    own = {places.get(number, number): values for number, values in state.items() if number not in others}
    _check_state(optimizer, groups, own)
    optimizer.load_state_dict({"state": own, "param_groups": groups})
    _restore_layouts(optimizer)


def _groups(optimizer: Optimizer, plain: SavedOptimizer, all_numbers: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    """Return the saved groups of parameters, checked against the optimiser's and with tuples where it has tuples."""
    present = optimizer.state_dict()["param_groups"]
    if len(present) != len(plain.param_groups):
        raise UserError(f"found {len(plain.param_groups)} groups of parameters, allowed: {len(present)}")
    groups = []
    for now, read, all_of in zip(present, plain.param_groups, all_numbers, strict=True):
        saved = {**read, "params": now["params"]}
        if saved.keys() != now.keys() or read["params"] != list(all_of):
            raise UserError("a group of parameters is of another optimiser, or of other parameters")
        for key, value in saved.items():
            if not _is_alike(value, now[key]):
                raise UserError(f"{key}: found {shown(value)}, allowed: a value like {shown(now[key])}")
        # JSON has no tuples, and Adam's betas must be one.
        groups.append(
            {k: tuple(v) if isinstance(v, list) and isinstance(now[k], tuple) else v for k, v in saved.items()}
        )
    return groups


def _is_alike(saved: Any, now: Any) -> bool:
    """Return True if a saved value has the type of the optimiser's present value, and is not NaN."""
    # bool before numbers, because in Python True is an int.
    if isinstance(now, bool) or now is None or isinstance(now, str):
        return type(saved) is type(now)
    if isinstance(now, list | tuple):
        same = isinstance(saved, list) and len(saved) == len(now)
        return same and all(_is_alike(a, b) for a, b in zip(saved, now, strict=True))
    return isinstance(saved, int | float) and not isinstance(saved, bool) and saved == saved  # NaN differs from itself


def _check_state(optimizer: Optimizer, groups: list[dict[str, Any]], state: dict[int, dict[str, Any]]) -> None:
    """Raise UserError unless each parameter's state is empty, or has the names and shapes that the optimiser makes."""
    parameters: dict[int, Tensor] = {}
    wanted: dict[int, dict[str, Any]] = {}
    for group, saved in zip(optimizer.param_groups, groups, strict=True):
        example = _example(optimizer, group)
        parameters |= dict(zip(saved["params"], group["params"], strict=True))
        wanted |= dict.fromkeys(saved["params"], example)
    for index, values in state.items():
        if index not in parameters:
            raise UserError(f"found a state of parameter {index}, allowed: 0 to {len(parameters) - 1}")
        # An empty state is that of a parameter which has not had a gradient yet.
        if values and values.keys() != wanted[index].keys():
            raise UserError(f"parameter {index} has {', '.join(values)}, allowed: {', '.join(wanted[index])}")
        for name, value in values.items():
            _check_value(value, wanted[index][name], parameters[index], f"{name} of parameter {index}")


def _check_value(value: Any, example: Any, parameter: Tensor, what: str) -> None:
    if not isinstance(example, Tensor):
        if not _is_alike(value, example):
            raise UserError(f"{what}: found {shown(value)}, allowed: a value like {shown(example)}")
        return
    # The example is made for two numbers: what has its shape there has the parameter's shape here.
    shape = parameter.shape if example.dim() else example.shape
    if not isinstance(value, Tensor) or value.shape != shape or not value.is_floating_point():
        found = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else shown(value)
        raise UserError(f"{what}: found {found}, allowed: floating numbers {list(shape)}")
    # Not `value < 0`, which is False for NaN.
    if not example.dim() and not value >= 0:
        raise UserError(f"{what}: found {float(value)}, allowed: 0 or more")


def _example(optimizer: Optimizer, group: dict[str, Any]) -> dict[str, Any]:
    """Return the state that the optimiser makes for a parameter of that group; 0-d tensors count steps.

    It comes from a real step on a parameter of two numbers, because torch describes the state nowhere.
    """
    like = group["params"][0] if group["params"] else torch.zeros(())
    parameter = torch.nn.Parameter(torch.zeros(2, dtype=like.dtype, device=like.device))
    parameter.grad = torch.zeros_like(parameter)
    kind: Any = type(optimizer)
    # With the group's options, since these decide what the state holds: momentum, for example, or amsgrad.
    other = kind([{**group, "params": [parameter]}])
    other.step()
    return dict(other.state[parameter])


def _restore_layouts(optimizer: Optimizer) -> None:
    """Give state the memory order of its parameter again, channels_last for convolutions.

    Files do not know it, and fused optimisers walk parameter and state side by side as they lie in memory.
    """
    for p, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == p.shape:
                values[name] = torch.empty_like(p, dtype=value.dtype).copy_(value)
