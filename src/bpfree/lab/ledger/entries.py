"""The entries of benchmarks/ledger.yaml: published values, each with a config of bpfree that should reach it."""

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
    """A published value, and the training of bpfree that is compared with it.

    Attributes:
        name: the name of the entry, its results file and its run folders.
        rule: a name from `bpfree.rules.RULES`.
        data: a name from `bpfree.data.DATASETS`.
        net: a description of the net that bpfree trains.
        config: the name of a shipped config.
        overrides: changes of the config, `section.key=value` as in the shell.
        seeds: the seeds; each is one run.
        metric: the metric of the test split that is compared; accuracy is in %.
        published: the published value; None if nobody published one.
        source: the paper and table of the value; without a value, a remark in its place.
        url: the address of the source.
        setting: how the source's net, data or augmentation differ from the config; empty if they are the same.
        tolerance: how far below the published value a mean may be and still count as reached; for a loss, above it.
        about: further remarks for the reader.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)  # a misspelt key is refused, and not passed over

    # The name is part of file names, so it must not hold "/" or begin with a dot.
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
        """Refuse negative seeds, and a seed that is there twice."""
        if len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise ValueError("different numbers, 0 or larger")
        return seeds

    @model_validator(mode="after")
    def _published_values_have_a_source(self) -> "Entry":
        """Refuse a published value without an address."""
        if self.published is not None and self.url is None:
            raise ValueError("a url for every published value")
        return self

    def training(self, seed: int, data_dir: Path | None = None) -> Config:
        """Return the config of one run.

        Args:
            seed: the seed of the run.
            data_dir: the folder of the data sets; None for the default.

        Raises:
            UserError: the config does not exist, or an override does not fit it.
        """
        place = [] if data_dir is None else [f"data.dir={user_path(data_dir, '--data-dir').resolve()}"]
        return load_config(self.config, [*self.overrides, f"train.seed={seed}", *place])

    @property
    def places(self) -> int:
        """The number of decimal places that are shown."""
        return 2 if self.metric == "accuracy" else 4

    @property
    def command(self) -> str:
        """The command that trains the run of the first seed."""
        return shlex.join(["bpfree", "train", self.config, *self.overrides, f"train.seed={self.seeds[0]}"])

    def check(self) -> None:
        """Check that the names exist, and that the config has the entry's rule and data.

        Raises:
            UserError: a name is unknown, or the config has another rule or other data.
        """
        if self.rule not in RULES:
            raise unknown("rule", self.rule, RULES)
        if self.config not in shipped():
            raise unknown("config", self.config, shipped())
        config = self.training(self.seeds[0])
        for key, ours, allowed in (("rule", self.rule, config.rule["name"]), ("data", self.data, config.data.name)):
            if ours != allowed:
                raise UserError(f"{key}: found '{ours}', allowed: '{allowed}' as in the config {self.config}")


def read_entries(path: Path) -> list[Entry]:
    """Read and check every entry of the ledger.

    Args:
        path: the file, benchmarks/ledger.yaml.

    Raises:
        UserError: the file does not exist, is not YAML, or an entry is wrong.
    """
    try:
        values = read_yaml(path)
    except FileNotFoundError as error:
        raise UserError(
            f"ledger: found no {path} in this folder. Run it in the root of the bpfree repository"
        ) from error
    if not isinstance(values, list):
        raise UserError(f"{path}: found {type(values).__name__}, allowed: a list of entries")
    entries = [_parse(value, f"{path}: entry {number}") for number, value in enumerate(values, 1)]
    names = [entry.name for entry in entries]
    if double := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{path}: name: found '{double}' twice, allowed: a different name for each entry")
    return entries


def _parse(value: Any, where: str) -> Entry:
    """Return a checked entry, or raise UserError that says where in the file it is."""
    if not isinstance(value, dict):
        raise UserError(f"{where}: found {value!r}, allowed: keys such as name, rule, config, published")
    where = f"{where} ({value['name']})" if "name" in value else where
    try:
        entry = Entry.model_validate(value)
        # Names are checked when the file is read. A typing error must not show up after hours of training.
        entry.check()
    except ValidationError as error:
        raise UserError(f"{where}: {explain(error)}") from error
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return entry


def explain(error: ValidationError) -> str:
    """Return the first problem that pydantic found, on one line and in the form of our errors.

    Args:
        error: the error of an Entry, or of a results file.
    """
    first = error.errors()[0]  # one error on one line; the next one shows up when this one is corrected
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return str(unknown("key", key, Entry.model_fields))
    if first["type"] == "missing":
        return f"{key}: found no value, allowed: a value, or null if there is none"
    allowed = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return f"{key}: found {first['input']!r}, allowed: {allowed}" if key else f"allowed: {allowed}"


def choose(entries: Sequence[Entry], names: Sequence[str]) -> list[Entry]:
    """Return the entries with some names, in the order of the ledger.

    Args:
        entries: every entry.
        names: names of entries.

    Raises:
        UserError: no entry has a name.
    """
    all_names = [entry.name for entry in entries]
    for name in names:
        if name not in all_names:
            raise unknown("entry", name, all_names)
    return [entry for entry in entries if entry.name in names]
