"""benchmarks/ledger.yaml: a list of published figures, each with a config of ours."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from bpfree.disk.paths import user_path
from bpfree.disk.plain import read_yaml
from bpfree.errors import UserError, unknown
from bpfree.rules import RULES
from bpfree.runs.config import Config
from bpfree.runs.config_file import load_config, shipped

LEDGER = Path("benchmarks") / "ledger.yaml"


class Entry(BaseModel):
    """A figure, and the training of ours that stands beside it.

    Attributes:
        name: of the entry, its results file and its run folders.
        rule: of `bpfree.rules.RULES`.
        data: of `bpfree.data.DATASETS`.
        net: ours, in words.
        config: a shipped one.
        overrides: `section.key=value`, as in the shell.
        seeds: one run for each.
        metric: of the test split; accuracy is in %.
        published: the figure, or None where there is none to compare with.
        source: where it is from, or without a figure, what takes its place.
        url: of the source.
        setting: of the source, where it is not ours.
        tolerance: how far from the figure still counts as reached.
        about: what else a reader should know.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    rule: str
    data: str
    net: str = Field(min_length=1)
    config: str
    overrides: list[str] = []
    seeds: list[int] = Field(min_length=1)
    metric: Literal["accuracy", "loss"] = "accuracy"
    published: float | None = Field(allow_inf_nan=False)
    source: str = Field(min_length=1)
    url: str | None = Field(default=None, pattern=r"^https://\S+$")
    setting: str = ""
    tolerance: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    about: str = ""

    @field_validator("seeds")
    @classmethod
    def _seeds_are_distinct(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise ValueError("distinct numbers from 0 on")
        return seeds

    @model_validator(mode="after")
    def _figures_have_a_source(self) -> "Entry":
        if self.published is not None and self.url is None:
            raise ValueError("a url with every published figure")
        return self

    def training(self, seed: int, data_dir: Path | None = None) -> Config:
        """The config of one run."""
        place = [] if data_dir is None else [f"data.dir={user_path(data_dir, '--data-dir').resolve()}"]
        return load_config(self.config, [*self.overrides, f"train.seed={seed}", *place])

    @property
    def places(self) -> int:
        """Behind the point."""
        return 2 if self.metric == "accuracy" else 4

    @property
    def command(self) -> str:
        """That trains the first seed by itself."""
        return shlex.join(["bpfree", "train", self.config, *self.overrides, f"train.seed={self.seeds[0]}"])

    def check(self) -> None:
        """Refuse names that are in no table, and a config of another rule or other data.

        Raises:
            UserError: saying which.
        """
        if self.rule not in RULES:
            raise unknown("rule", self.rule, RULES)
        if self.config not in shipped():
            raise unknown("config", self.config, shipped())
        config = self.training(self.seeds[0])
        for key, wanted, found in (("rule", self.rule, config.rule["name"]), ("data", self.data, config.data.name)):
            if wanted != found:
                raise UserError(f"{key}: found '{wanted}', allowed: '{found}', which is that of the config")


def read_entries(path: Path) -> list[Entry]:
    """Every entry, checked.

    Raises:
        UserError: the file is not there, is not YAML, or an entry does not hold.
    """
    try:
        values = read_yaml(path)
    except FileNotFoundError as error:
        raise UserError(f"ledger: found no {path} here, allowed: the root of the bpfree repository") from error
    if not isinstance(values, list):
        raise UserError(f"{path}: found {type(values).__name__}, allowed: a list of entries")
    entries = [_parse(value, f"{path}: entry {number}") for number, value in enumerate(values, 1)]
    names = [entry.name for entry in entries]
    if double := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{path}: name: found '{double}' twice, allowed: a name of its own for each entry")
    return entries


def _parse(value: Any, where: str) -> Entry:
    if not isinstance(value, dict):
        raise UserError(f"{where}: found {value!r}, allowed: keys such as name, rule, config, published")
    where = f"{where} ({value['name']})" if "name" in value else where
    try:
        entry = Entry.model_validate(value)
        entry.check()
    except ValidationError as error:
        raise UserError(f"{where}: {explain(error)}") from error
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return entry


def explain(error: ValidationError) -> str:
    """The first of what is wrong, in one line."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return str(unknown("key", key, Entry.model_fields))
    if first["type"] == "missing":
        return f"{key}: found none, allowed: a value; null where there is none"
    allowed = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return f"{key}: found {first['input']!r}, allowed: {allowed}" if key else f"allowed: {allowed}"


def choose(entries: Sequence[Entry], names: Sequence[str]) -> list[Entry]:
    """Those of the names, in the order of the ledger.

    Raises:
        UserError: there is no such entry.
    """
    known = [entry.name for entry in entries]
    for name in names:
        if name not in known:
            raise unknown("entry", name, known)
    return [entry for entry in entries if entry.name in names]
