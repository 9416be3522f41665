"""What a config leaves open: a marker such as `lr: {search: log, low: 1e-4, high: 1e-1}` where a value would be.

A marker may stand anywhere, also within a value of a choice: the space is what one comes across on the way from the
top of the config to its values, so it may depend on what was chosen before. A parameter is named by its dotted path;
within a chosen value that path says what was chosen (`rule=fa.signal_scale`), since two choices may have an option of
one name.
"""

from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Any, Literal, Self, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bpfree.errors import UserError, unknown

Label = bool | int | float | str | None
"""What stands for a value of a choice: the value itself if it is plain, else a text."""

_LARGEST_GRID = 10_000
Model = TypeVar("Model", bound=BaseModel)


class _Marker(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class _Range(_Marker):
    @model_validator(mode="after")
    def _in_order(self) -> Self:
        low, high = self.low, self.high  # type: ignore[attr-defined]
        if low > high:
            raise ValueError(f"found low {low:g} above high {high:g}, allowed: low up to high")
        return self


class Log(_Range):
    """A number between low and high, each order of magnitude as likely as the next."""

    search: Literal["log"]
    low: float = Field(gt=0)
    high: float


class Linear(_Range):
    """A number between low and high, in steps if there is one."""

    search: Literal["linear"]
    low: float
    high: float
    step: float | None = Field(default=None, gt=0)

    def all(self) -> list[float]:
        """The values, from low on in steps; none without a step. In decimals: three steps of 0.1 are 0.3."""
        if self.step is None:
            return []
        low, high, step = (Decimal(str(number)) for number in (self.low, self.high, self.step))
        return [float(low + k * step) for k in range(int((high - low) / step) + 1)]


class Integer(_Range):
    """A whole number from low to high."""

    search: Literal["int"]
    low: int
    high: int
    step: int = Field(default=1, ge=1)

    def all(self) -> list[int]:
        """The values, from low on in steps."""
        return list(range(self.low, self.high + 1, self.step))


class Choice(_Marker):
    """One of the values, which may be numbers, names or whole specs with markers of their own."""

    search: Literal["choice"]
    values: list[Any]

    @model_validator(mode="after")
    def _no_two_equal(self) -> Self:
        labels = self.labels
        if not labels:
            raise ValueError("values: found none, allowed: one or more")
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f"values: found {label!r} twice, allowed: values that differ")
        return self

    @property
    def labels(self) -> list[Label]:
        """A short one for each value: a spec goes by its name, unless another value does too."""
        short = [_label(value, at_length=False) for value in self.values]
        pairs = zip(self.values, short, strict=True)
        return [name if short.count(name) == 1 else _label(value, at_length=True) for value, name in pairs]


Marker = Log | Linear | Integer | Choice
MARKERS: dict[str, type[Marker]] = {"log": Log, "linear": Linear, "int": Integer, "choice": Choice}
Choose = Callable[[str, Marker], Any]
"""Takes the name of a parameter and its marker; returns a number, or for a choice the label of a value."""


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
    """Whether it stands for a value that is to be searched."""
    return isinstance(value, Mapping) and "search" in value


def read_marker(value: Mapping[str, Any], path: str) -> Marker:
    """The marker, checked.

    Raises:
        UserError: an unknown kind or key, or bounds that do not fit; its text begins with the path.
    """
    kind = value["search"]
    if not isinstance(kind, str) or kind not in MARKERS:
        raise UserError(f"{path}.search: found {kind!r}, allowed: {', '.join(MARKERS)}")
    return validated(MARKERS[kind], value, path)


def validated(model: type[Model], values: Mapping[str, Any], path: str) -> Model:
    """The values as that model.

    Raises:
        UserError: pydantic's first objection, in our words.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")  # a typo explains the rest
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
    """The values with a value in place of each marker.

    Raises:
        UserError: a marker is malformed.
    """
    if is_marker(values):
        marker = read_marker(values, path)
        chosen = choose(path, marker)
        if not isinstance(marker, Choice):
            return chosen
        return resolve(marker.values[marker.labels.index(chosen)], choose, f"{path}={chosen}")
    if isinstance(values, Mapping):
        return {key: resolve(value, choose, _join(path, key)) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [resolve(value, choose, _join(path, index)) for index, value in enumerate(values)]
    return values


def find_markers(values: Any, path: str = "") -> Iterator[tuple[str, Marker]]:
    """Names of all parameters that may come up, whatever is chosen, and their markers.

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
    """Raise UserError if a config that is to be trained leaves a value open."""
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
    return next((found for key, value in inner if (found := _first_marker(value, _join(path, key))) is not None), None)


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def at_random(seed: int) -> Choose:
    """Chooses as a random search would."""
    rng = np.random.default_rng(seed)

    def choose(_name: str, marker: Marker) -> Any:
        if isinstance(marker, Choice):
            return marker.labels[rng.integers(len(marker.labels))]
        if isinstance(marker, Log):
            return float(np.exp(rng.uniform(np.log(marker.low), np.log(marker.high))))
        known = marker.all()
        return known[rng.integers(len(known))] if known else float(rng.uniform(marker.low, marker.high))

    return choose


class _LeftOpenError(Exception):
    def __init__(self, name: str, options: list[Any]) -> None:
        super().__init__(name)
        self.name, self.options = name, options


def grid(values: Any) -> list[dict[str, Any]]:
    """Parameters of every combination, in order.

    Raises:
        UserError: a range has infinitely many values, or there are too many combinations.
    """
    begun: list[dict[str, Any]] = [{}]
    done: list[dict[str, Any]] = []
    while begun:
        fixed = begun.pop()

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
    known: list[Any] = marker.labels if isinstance(marker, Choice) else [] if isinstance(marker, Log) else marker.all()
    if not known:
        raise UserError(
            f"{name}: found search: {marker.search}, which has infinitely many values; allowed in a grid: choice, int, "
            "linear with step"
        )
    return known
