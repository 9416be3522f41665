"""Search markers in a config: `lr: {search: log, low: 1e-4, high: 1e-1}` leaves the value open for `bpfree tune`.

A marker may stand anywhere, also within a value of a choice, so a parameter may exist only for some choices. The name
of a parameter is its dotted path. Within a chosen value the path says what was chosen (`rule=fa.signal_scale`), since two
values of a choice may have options of the same name.
"""

from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Any, Literal, Self, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bpfree.errors import UserError, unknown

Label = bool | int | float | str | None
"""The label of a value of a choice: the value itself if it is plain, else a text."""

_LARGEST_GRID = 10_000
Model = TypeVar("Model", bound=BaseModel)


class _Marker(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class _Range(_Marker):
    @model_validator(mode="after")
    def _in_order(self) -> Self:
        # The fields belong to the subclasses, since their types differ.
        low, high = self.low, self.high  # type: ignore[attr-defined]
        if low > high:
            raise ValueError(f"found low {low:g} above high {high:g}, allowed: low up to high")
        return self


class Log(_Range):
    """A marker for a number between low and high, with each order of magnitude as likely as the next."""

    search: Literal["log"]
    low: float = Field(gt=0)
    high: float


class Linear(_Range):
    """A marker for a number between low and high: any number, or low, low + step, low + 2 step, ..."""

    search: Literal["linear"]
    low: float
    high: float
    step: float | None = Field(default=None, gt=0)

    def all(self) -> list[float]:
        """Return the values from low on in steps; an empty list without a step."""
        if self.step is None:
            return []
        # In decimals, so that three steps of 0.1 give 0.3 and not 0.30000000000000004.
        low, high, step = (Decimal(str(number)) for number in (self.low, self.high, self.step))
        return [float(low + k * step) for k in range(int((high - low) / step) + 1)]


class Integer(_Range):
    """A marker for a whole number from low to high, in steps."""

    search: Literal["int"]
    low: int
    high: int
    step: int = Field(default=1, ge=1)

    def all(self) -> list[int]:
        """Return the values from low on in steps."""
        return list(range(self.low, self.high + 1, self.step))


class Choice(_Marker):
    """A marker for one of several values: numbers, names, or whole specs with markers inside them."""

    search: Literal["choice"]
    values: list[Any]

    @model_validator(mode="after")
    def _no_two_equal(self) -> Self:
        labels = self.labels
        if not labels:
            raise ValueError("values: found none, allowed: one or more")
        # A label names the choice in paths and in the study, so two values must not share one.
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f"values: found {label!r} twice, allowed: values that differ")
        return self

    @property
    def labels(self) -> list[Label]:
        """A short label for each value: the name of a spec, with its options if another value has the same name."""
        short = [_label(value, at_length=False) for value in self.values]
        pairs = zip(self.values, short, strict=True)
        return [name if short.count(name) == 1 else _label(value, at_length=True) for value, name in pairs]


Marker = Log | Linear | Integer | Choice
MARKERS: dict[str, type[Marker]] = {"log": Log, "linear": Linear, "int": Integer, "choice": Choice}
Choose = Callable[[str, Marker], Any]
"""A function from the name of a parameter and its marker to a number, or for a choice to the label of a value."""


def _label(value: Any, *, at_length: bool) -> Label:
    if at_length and is_marker(value):
        return "?"
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
    """Return True if the value of a config is a search marker.

    Args:
        value: any value of a config.
    """
    return isinstance(value, Mapping) and "search" in value


def read_marker(value: Mapping[str, Any], path: str) -> Marker:
    """Check a search marker and return it as an object.

    Args:
        value: the mapping in the config.
        path: its dotted path, with which errors begin.

    Raises:
        UserError: an unknown kind or key, or bounds that do not fit.
    """
    kind = value["search"]
    if not isinstance(kind, str) or kind not in MARKERS:
        raise UserError(f"{path}.search: found {kind!r}, allowed: {', '.join(MARKERS)}")
    return validated(MARKERS[kind], value, path)


def validated(model: type[Model], values: Mapping[str, Any], path: str) -> Model:
    """Return values as a pydantic model.

    Args:
        model: the class of the model.
        values: its fields.
        path: dotted path of the values, with which errors begin.

    Raises:
        UserError: the first thing that pydantic objects to, in our words.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        first = min(error.errors(), key=lambda entry: entry["type"] != "extra_forbidden")
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
    """Replace each marker in a config by a value.

    Args:
        values: a config with markers.
        choose: chooses the value of each parameter.
        path: dotted path of the values; empty for a whole config.

    Returns:
        A copy without markers.

    Raises:
        UserError: a marker is malformed.

    Example:
        >>> resolve({"lr": {"search": "linear", "low": 0, "high": 1}}, lambda name, marker: marker.high)
        {'lr': 1.0}
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
    """Give the names and markers of all parameters, including those that exist only for some choices.

    Args:
        values: a config with markers.
        path: dotted path of the values; empty for a whole config.

    Raises:
        UserError: a marker is malformed.
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
    """Raise UserError if a config that is to be trained has a search marker.

    Args:
        values: the config.
        where: the config is from, for errors.
    """
    path = _first_marker(values, "")
    if path is not None:
        raise UserError(
            f"{where}: {path} is left open by a search marker, allowed: a value. `bpfree tune` searches for the best"
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
    return next((path for path in paths if path is not None), None)


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def at_random(seed: int) -> Choose:
    """Return a function that chooses values at random, as a random search does.

    Args:
        seed: the same seed chooses the same values, if it is asked in the same order.
    """
    rng = np.random.default_rng(seed)

    def choose(_name: str, marker: Marker) -> Any:
        if isinstance(marker, Choice):
            return marker.labels[rng.integers(len(marker.labels))]
        if isinstance(marker, Log):
            return float(np.exp(rng.uniform(np.log(marker.low), np.log(marker.high))))
        steps = marker.all()
        return steps[rng.integers(len(steps))] if steps else float(rng.uniform(marker.low, marker.high))

    return choose


class _LeftOpenError(Exception):
    """A parameter has no value yet; `options` are all that it can have."""

    def __init__(self, name: str, options: list[Any]) -> None:
        super().__init__(name)
        self.name, self.options = name, options


def grid(values: Any) -> list[dict[str, Any]]:
    """Return the parameters of every combination, in order.

    Args:
        values: a config with markers.

    Returns:
        For each combination, the value of each parameter by its name.

    Raises:
        UserError: a range has infinitely many values, or there are too many combinations.

    Example:
        >>> grid({"seed": {"search": "int", "low": 0, "high": 1}})
        [{'seed': 0}, {'seed': 1}]
    """
    # A parameter may exist only for some choices, so the combinations are not a product of lists. The config is
    # resolved again and again, and each time the first parameter without a value gets all its values.
    # A stack, with the options in reverse: the first option is completed first.
    begun: list[dict[str, Any]] = [{}]
    done: list[dict[str, Any]] = []
    while begun:
        fixed = begun.pop()

        # `fixed` is an argument, since a closure would see the value of a later turn of the loop.
        def choose(name: str, marker: Marker, fixed: dict[str, Any] = fixed) -> Any:
            if name not in fixed:
                raise _LeftOpenError(name, _all_of(name, marker))
            return fixed[name]

        try:
            resolve(values, choose)
        except _LeftOpenError as left:
            begun += [{**fixed, left.name: option} for option in reversed(left.options)]
        else:
            done.append(fixed)
        if len(done) + len(begun) > _LARGEST_GRID:
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
