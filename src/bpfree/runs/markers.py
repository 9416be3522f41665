"""Search markers: `lr: {search: log, low: 1e-4, high: 1e-1}` in a config leaves a value open for `bpfree tune`.

A marker may stand anywhere, also within a value of a choice. So the space may depend on earlier choices: a parameter
exists only if the value that contains it was chosen. The name of a parameter is its dotted path in the config. Within a
chosen value the path names the choice too (`rule=fa.feedback`), since two choices may have options of the same name.
"""

from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Any, Literal, Self, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bpfree.errors import UserError, unknown

Label = bool | int | float | str | None
"""The label of a value of a choice: the value itself if it is plain, otherwise a short text."""

_LARGEST_GRID = 10_000
Model = TypeVar("Model", bound=BaseModel)


class _Marker(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)  # no number can be drawn up to infinity


class _Range(_Marker):
    @model_validator(mode="after")
    def _in_order(self) -> Self:
        low, high = self.low, self.high  # type: ignore[attr-defined]
        if low > high:
            raise ValueError(f"found low {low:g} above high {high:g}, allowed: low up to high")
        return self


class Log(_Range):
    """A number between low and high, uniform on a logarithmic scale: each order of magnitude is equally likely.

    Attributes:
        search: the kind of marker.
        low: the smallest value, above 0.
        high: the largest value.
    """

    search: Literal["log"]
    low: float = Field(gt=0)
    high: float


class Linear(_Range):
    """A number between low and high, uniform.

    Attributes:
        search: the kind of marker.
        low: the smallest value.
        high: the largest value, if low plus whole steps reaches it.
        step: distance between two values; None allows every number.
    """

    search: Literal["linear"]
    low: float
    high: float
    step: float | None = Field(default=None, gt=0)

    def all(self) -> list[float]:
        """Return the values from low upwards in steps; empty without a step.

        Decimals are exact: in floats three steps of 0.1 are 0.30000000000000004, and a study would list that value.

        >>> Linear(search="linear", low=0, high=0.35, step=0.1).all()
        [0.0, 0.1, 0.2, 0.3]
        """
        if self.step is None:
            return []
        # str() gives the digits that the user wrote, such as 0.1; Decimal(0.1) would be the binary number beside it.
        low, high, step = (Decimal(str(number)) for number in (self.low, self.high, self.step))
        return [float(low + k * step) for k in range(int((high - low) / step) + 1)]


class Integer(_Range):
    """A whole number from low to high.

    Attributes:
        search: the kind of marker.
        low: the smallest value.
        high: the largest value, if low plus whole steps reaches it.
        step: distance between two values.
    """

    search: Literal["int"]
    low: int
    high: int
    step: int = Field(default=1, ge=1)

    def all(self) -> list[int]:
        """Return the values from low upwards in steps."""
        return list(range(self.low, self.high + 1, self.step))


class Choice(_Marker):
    """A choice between values.

    Attributes:
        search: the kind of marker.
        values: the values: numbers, names, or whole specs, which may contain markers.
    """

    search: Literal["choice"]
    values: list[Any]

    @model_validator(mode="after")
    def _no_two_equal(self) -> Self:
        labels = self.labels
        if not labels:
            raise ValueError("values: found none, allowed: one or more")
        # A label names the choice in paths and in the study, so two values must not share one.
        for label in labels:
            # For Python 1, 1.0 and True are equal, here and where `resolve` looks up a label. So they count as one.
            if labels.count(label) > 1:
                raise ValueError(f"values: found {label!r} twice, allowed: values that differ")
        return self

    @property
    def labels(self) -> list[Label]:
        """A label for each value: the name of a spec, or its options too if two values have the same name.

        >>> Choice(search="choice", values=["dfa", {"name": "fa", "feedback": "uniform"}]).labels
        ['dfa', 'fa']
        """
        short = [_label(value, at_length=False) for value in self.values]
        pairs = zip(self.values, short, strict=True)
        return [name if short.count(name) == 1 else _label(value, at_length=True) for value, name in pairs]


Marker = Log | Linear | Integer | Choice
MARKERS: dict[str, type[Marker]] = {"log": Log, "linear": Linear, "int": Integer, "choice": Choice}
Choose = Callable[[str, Marker], Any]
"""A function that takes a parameter's name and marker. It returns a number, or for a choice the label of a value."""


def _label(value: Any, *, at_length: bool) -> Label:
    if at_length and is_marker(value):
        return "?"  # the value is chosen later, and this label must not depend on it
    if isinstance(value, Mapping):
        name = str(value.get("name", value.get("search", "")))
        if name and not at_length:
            return name
        options = (f"{key}={_label(v, at_length=True)}" for key, v in value.items() if key not in ("name", "search"))
        return f"{name}({', '.join(options)})"
    if isinstance(value, list | tuple):
        return f"[{', '.join(str(_label(v, at_length=True)) for v in value)}]"
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def is_marker(value: Any) -> bool:
    """Return True if a value of a config is a search marker."""
    return isinstance(value, Mapping) and "search" in value


def read_marker(value: Mapping[str, Any], path: str) -> Marker:
    """Return a marker from the plain values of a config, checked.

    Args:
        value: the plain values, with the key `search`.
        path: the dotted path of the marker in the config, for error messages.

    Raises:
        UserError: the kind or a key is unknown, or the bounds are invalid.
    """
    kind = value["search"]
    if not isinstance(kind, str) or kind not in MARKERS:
        raise UserError(f"{path}.search: found {kind!r}, allowed: {', '.join(MARKERS)}")
    return validated(MARKERS[kind], value, path)


def validated(model: type[Model], values: Mapping[str, Any], path: str) -> Model:
    """Return plain values as a pydantic model.

    Args:
        model: the class of the model.
        values: the plain values.
        path: the dotted path of the values in the config, for error messages.

    Raises:
        UserError: the values are invalid; the message names the first error that pydantic finds.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")  # a typo explains the rest
    where = ".".join([path, *map(str, first["loc"])])
    if first["type"] == "extra_forbidden":
        raise unknown("key", str(first["loc"][-1]), model.model_fields, prefix=f"{path}.")
    if first["type"] == "missing":
        raise UserError(f"{where}: missing; it has {', '.join(map(str, values))}")
    message = first["msg"].removeprefix("Input should be ")
    if message.startswith("Value error, "):
        raise UserError(f"{path}: {message.removeprefix('Value error, ')}")
    raise UserError(f"{where}: found {first['input']!r}, allowed: {message}")


def resolve(values: Any, choose: Choose, path: str = "") -> Any:
    """Return the values with a chosen value in place of each marker.

    Args:
        values: plain values with markers.
        choose: the function that chooses a value for each marker. It is called only for markers that the choices made
            before lead to.
        path: the dotted path of the values.

    Raises:
        UserError: a marker is invalid.

    Example:
        >>> resolve({"lr": {"search": "log", "low": 0.01, "high": 0.1}}, lambda name, marker: marker.high)
        {'lr': 0.1}
    """
    if is_marker(values):
        marker = read_marker(values, path)
        chosen = choose(path, marker)
        if not isinstance(marker, Choice):
            return chosen
        # The value may have markers of its own, which get names only now.
        return resolve(marker.values[marker.labels.index(chosen)], choose, f"{path}={chosen}")
    if isinstance(values, Mapping):
        return {key: resolve(value, choose, _join(path, key)) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [resolve(value, choose, _join(path, index)) for index, value in enumerate(values)]
    return values


def find_markers(values: Any, path: str = "") -> Iterator[tuple[str, Marker]]:
    """Yield the name and marker of every parameter that any choice can lead to.

    Args:
        values: plain values with markers.
        path: the dotted path of the values.

    Raises:
        UserError: a marker is invalid.
    """
    if is_marker(values):
        marker = read_marker(values, path)
        yield path, marker
        if isinstance(marker, Choice):
            for label, value in zip(marker.labels, marker.values, strict=True):
                yield from find_markers(value, f"{path}={label}")
    elif isinstance(values, Mapping):
        for key, value in values.items():
            yield from find_markers(value, _join(path, key))
    elif isinstance(values, list | tuple):
        for index, value in enumerate(values):
            yield from find_markers(value, _join(path, index))


def refuse_markers(values: Any, where: str) -> None:
    """Raise UserError if a config that will be trained contains a search marker.

    Args:
        values: the plain values of the config.
        where: the name of the config, for the error message.
    """
    path = _first_marker(values, "")
    if path is not None:
        raise UserError(
            f"{where}: {path} is left open by a search marker, allowed: a value. Use `bpfree tune` to find one"
        )


def _first_marker(values: Any, path: str) -> str | None:
    if is_marker(values):
        return path
    inner: Any = ()
    if isinstance(values, Mapping):
        inner = values.items()
    elif isinstance(values, list | tuple):
        inner = enumerate(values)
    paths = (_first_marker(value, _join(path, key)) for key, value in inner)
    return next((each for each in paths if each is not None), None)


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def at_random(seed: int) -> Choose:
    """Return a function that chooses values at random, from a seed."""
    rng = np.random.default_rng(seed)

    def choose(_name: str, marker: Marker) -> Any:
        if isinstance(marker, Choice):
            return marker.labels[rng.integers(len(marker.labels))]  # rng.choice would turn 1 and "a" into two texts
        if isinstance(marker, Log):
            return float(np.exp(rng.uniform(np.log(marker.low), np.log(marker.high))))
        steps = marker.all()
        return steps[rng.integers(len(steps))] if steps else float(rng.uniform(marker.low, marker.high))

    return choose


class _LeftOpenError(Exception):
    def __init__(self, name: str, options: list[Any]) -> None:
        super().__init__(name)
        self.name, self.options = name, options


def grid(values: Any) -> list[dict[str, Any]]:
    """Return the parameters of every combination, in order.

    The parameters depend on earlier choices, so they are not a product of lists. Each incomplete combination is
    resolved until a marker has no value yet; then it is replaced by one combination for each value of this marker.

    Args:
        values: plain values with markers.

    Raises:
        UserError: a range has infinitely many values, or there are more than 10,000 combinations.
    """
    incomplete: list[dict[str, Any]] = [{}]
    done: list[dict[str, Any]] = []
    while incomplete:
        fixed = incomplete.pop()

        # `fixed` is an argument, since a closure would see the value of a later turn of the loop.
        def choose(name: str, marker: Marker, fixed: dict[str, Any] = fixed) -> Any:
            if name not in fixed:
                raise _LeftOpenError(name, _all_of(name, marker))  # it leaves `resolve` at any depth
            return fixed[name]

        try:
            resolve(values, choose)
        except _LeftOpenError as left:
            # `pop` takes the last one, so reversed order keeps the order of the options.
            incomplete += [{**fixed, left.name: option} for option in reversed(left.options)]
        else:
            done.append(fixed)
        if len(done) + len(incomplete) > _LARGEST_GRID:  # counted early: all of them may not fit into memory
            raise UserError(f"tune.sampler: found grid for over {_LARGEST_GRID} combinations, allowed: tpe, random")
    return done


def _all_of(name: str, marker: Marker) -> list[Any]:
    values: list[Any] = marker.labels if isinstance(marker, Choice) else [] if isinstance(marker, Log) else marker.all()
    if not values:
        raise UserError(
            f"{name}: found search: {marker.search}, which has infinitely many values; allowed in a grid: choice, int, "
            "linear with step"
        )
    return values
