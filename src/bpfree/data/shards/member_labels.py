"""Read labels from members of a tar: text such as .cls, or JSON. A label is a class, or numbers to be predicted."""

import json
import math
from array import array
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bpfree.errors import UserError, shown

LARGEST = 1 << 20
"""The largest number of bytes of a member with a label."""

_LONGEST = 200  # letters of the name of a class


class LabelsRead:
    """Labels that are read one after another. Classes are kept as numbers, since a text for each would take memory.

    Args:
        key: for JSON objects, the name under which the label lies.
        values: True if labels are numbers to be predicted.
    """

    def __init__(self, key: str, values: bool) -> None:
        self.key = key
        self.values = values
        self._classes: dict[str, int] = {}
        self._places: array[int] = array("q")
        self._values: array[float] = array("d")
        self._form: tuple[int, ...] | None = None

    def add(self, content: bytes, ending: str, where: str) -> None:
        """Add the label in a member.

        Args:
            content: of the member.
            ending: the end of its name. "json" and names that end in ".json" are JSON, all others are text.
            where: the sample, for errors.

        Raises:
            UserError: the content is not a label, or is of another shape than the labels before.
        """
        value = self._of_json(content, where) if ending.rpartition(".")[2] == "json" else _text(content, where)
        if self.values:
            self._add_numbers(value, where)
            return
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise UserError(f"{where}: found the label {shown(value)}, allowed: an integer or a word{_for_numbers()}")
        name = str(value).strip()
        if not 0 < len(name) <= _LONGEST:
            raise UserError(f"{where}: found a label of {len(name)} letters, allowed: 1 to {_LONGEST}")
        self._places.append(self._classes.setdefault(name, len(self._classes)))

    def finish(self) -> tuple[Tensor, tuple[str, ...]]:
        """Return the labels and the different ones in the order in which they came.

        Returns:
            int64 [N], the place of each label among the different ones. For numbers float64 [N] or [N, D], and ().
        """
        if self.values:
            return torch.tensor(np.array(self._values)).view(-1, *(self._form or ())), ()
        return torch.tensor(np.array(self._places)), tuple(self._classes)

    def _of_json(self, content: bytes, where: str) -> Any:
        try:
            value = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: found a label that is not JSON ({error})") from error
        if not isinstance(value, dict):
            return value
        if self.key not in value:
            raise UserError(
                f"{where}: found JSON with the keys {shown([*value])}, allowed: one of them is {self.key!r}. Name the "
                "key of the label with data.key"
            )
        return value[self.key]

    def _add_numbers(self, value: Any, where: str) -> None:
        values = value if isinstance(value, list) else [value]
        form = (len(values),) if isinstance(value, list) else ()
        try:
            numbers = [float(each) for each in values if not isinstance(each, bool)]
        except (ValueError, TypeError, OverflowError):
            numbers = []
        if len(numbers) < len(values) or not values or not all(map(math.isfinite, numbers)):
            raise UserError(f"{where}: found the label {shown(value)}, allowed: a finite number, or a list of some")
        if self._form not in (None, form):
            raise UserError(f"{where}: found a label of shape {[*form]}, allowed: {[*(self._form or ())]}, as before")
        self._form = form
        self._values.extend(numbers)


def _text(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: found a label that is not text in UTF-8") from error


def _for_numbers() -> str:
    return "; numbers to be predicted with data.values=true"
