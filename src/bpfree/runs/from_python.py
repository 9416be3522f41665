"""Describe a training that a Python call asks for by a config, as far as a config can describe it."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from bpfree.data import Dataset, make_dataset
from bpfree.data.records import is_data
from bpfree.data.transforms import Transform, described, make_transform, split_augment
from bpfree.errors import UserError
from bpfree.runs.config import Config, TrainConfig, parse
from bpfree.runs.data_config import OLD_DATA_KEYS, DataConfig
from bpfree.runs.fit_options import FitOptions, unknown_option
from bpfree.spec import split_spec
from bpfree.tasks import TASKS, label_options


class Described(NamedTuple):
    """A training that a Python call asks for.

    Attributes:
        config: its config. Sections of objects have the names of their classes, for readers alone.
        dataset: the data, if they are Python objects; None if the config names them.
        transforms: all changes to training samples by functions, if some are Python objects; None if the config names
            all of them.
    """

    config: Config
    dataset: Dataset | None
    transforms: list[Transform] | None


def describe(
    net: Any,
    data: Any,
    rule: Any,
    values: Mapping[str, Any],
    *,
    test: Any,
    loss: Any,
    options: Mapping[str, Any],
    arguments: Sequence[str],
) -> Described:
    """Return the config and the data of a call such as `bpfree.fit(net, data, rule, ...)`.

    Args:
        net: an `nn.Module`, or the name or spec of a net.
        data: the name or spec of a data set, or what `bpfree.data.make_dataset` takes.
        rule: a Rule, or the name or spec of a rule.
        values: sections of the config that are given already: `optimizer`, `train`, `trackers`.
        test: data for the final evaluation, in the form of `data`.
        loss: a function (outputs, labels) -> loss, the name of a loss of the task, or None.
        options: keys of the sections `data` and `train`, the sections `schedule` and `task`, and `classes`.
        arguments: the other arguments of the call, which an error about an unknown option names.

    Raises:
        UserError: an unknown option, a value that is not allowed, or data of another form.
    """
    named = isinstance(data, str) or (isinstance(data, Mapping) and not is_data(data))
    # `classes` means two things: a number of classes for arrays, or a list of classes to keep, a key of the config.
    classes = options["classes"] if isinstance(options.get("classes"), int) else None
    others = {key: value for key, value in options.items() if key != "classes" or classes is None}
    functions: list[Transform] = []
    if "augment" in others:
        others["augment"], functions = split_augment(others["augment"])
    sections: dict[str, Any] = {
        **values,
        "data": {"name": data} if isinstance(data, str) else dict(data) if named else {},
        # Objects get the name of a valid stand-in: `parse` checks names, and classes of the user are not in its tables.
        "net": "mlp" if isinstance(net, nn.Module) else net,
        "rule": "backprop" if isinstance(rule, nn.Module) else rule,
    }
    sections["train"] = dict(sections.get("train", {}))
    _place(sections, others, arguments)
    # After the options, since `task` may be one of them.
    if isinstance(loss, str):
        sections["task"] = _with_loss(sections.get("task", "classify"), loss)
    elif loss is not None and not callable(loss):
        raise UserError(f"loss: found {type(loss).__name__}, allowed: a function (outputs, labels) -> loss, or a name")
    config = parse(sections, "fit")
    dataset = None if named else make_dataset(data, test, classes, **label_options(config.task))
    for section, value in (("net", net), ("rule", rule)):
        if isinstance(value, nn.Module):  # the name is for readers; `from_python` says that no config can rebuild it
            setattr(config, section, {"name": f"{type(value).__module__}:{type(value).__qualname__}"})
    if dataset is not None:
        config.data.name = dataset.name
    if not functions:
        return Described(config, dataset, None)
    augment = config.data.augment
    transforms = [*(make_transform(spec) for spec in augment.transforms), *functions]
    augment.transforms += [described(function) for function in functions]
    return Described(config, dataset, transforms)


def _place(sections: dict[str, Any], options: Mapping[str, Any], arguments: Sequence[str]) -> None:
    """Put each option into its section, or raise UserError if no section has such a key."""
    for key, value in options.items():
        if key in ("schedule", "task"):
            sections[key] = value
        elif key in DataConfig.model_fields or key in OLD_DATA_KEYS:
            sections["data"][key] = value
        elif key in TrainConfig.model_fields:
            sections["train"][key] = value
        else:
            known = [*arguments, *FitOptions.__annotations__]
            raise unknown_option(key, value, {"task": "classify", **sections}, known)


def _with_loss(task: Any, loss: str) -> dict[str, Any]:
    """Return the section `task` with a loss by name, or raise UserError if the task has no such option."""
    name, options = split_spec(task, "task")
    if name in TASKS and "loss" not in inspect.signature(TASKS[name].of).parameters:
        raise UserError(
            f"loss: found {loss!r}, but the task {name} has one loss only, allowed: a function (outputs, labels) -> "
            'loss, or with task="regress" mse, mae or huber'
        )
    return {"name": name, "loss": loss, **options}
