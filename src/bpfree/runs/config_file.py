"""Read a config from a file, or a shipped one by name, with overrides from the command line."""

import warnings
from collections.abc import Sequence
from importlib import resources
from typing import Any

from bpfree.data import FACTS
from bpfree.disk.paths import user_path
from bpfree.disk.plain import LARGEST_YAML, parse_yaml, read_text
from bpfree.errors import UserError, shown, unknown
from bpfree.runs.config import Config, old_keys, parse
from bpfree.spec import move_old_keys


def load_config(name: str, overrides: Sequence[str] = ()) -> Config:
    """Read a config from a file, or a shipped one by name, and check it.

    Args:
        name: path of a YAML file, or the name of a shipped config, such as "digits/dfa".
        overrides: changes in the form "section.key=value", such as "train.epochs=3".

    Returns:
        The config, complete and checked.

    Raises:
        UserError: the config does not exist, is not YAML, or has an unknown key or a value that is not allowed.

    Example:
        >>> load_config("digits/dfa", ["train.epochs=3"]).train.epochs
        3
    """
    return parse(*load_values(name, overrides))


def load_values(name: str, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], str]:
    """Read the plain values of a config without checking them.

    Args:
        name: path of a YAML file, or the name of a shipped config.
        overrides: changes in the form "section.key=value".

    Returns:
        The sections, and the path or name that errors show.

    Raises:
        UserError: the config does not exist, or is not YAML.
    """
    text, where = _find_text(name)
    # In YAML an empty file is None. Here it means that every value is the default.
    values = parse_yaml(text, where) or {}
    if not isinstance(values, dict):
        raise UserError(f"{where}: found {type(values).__name__}, allowed: sections (data, net, rule, ...)")
    for override in overrides:
        apply_override(values, override)
    return values, where


def shipped() -> list[str]:
    """Return the names of the configs that come with the package, as `<dataset>/<rule>`.

    Data sets have the order of `FACTS`, which begins with the best known, so that "dfa" proposes digits/dfa first.
    """
    root = resources.files("bpfree") / "configs"
    folders = [folder for folder in root.iterdir() if folder.is_dir()]
    files = [(d.name, f.name) for d in folders for f in d.iterdir() if f.name.endswith(".yaml")]
    order = {name: place for place, name in enumerate(FACTS)}
    files.sort(key=lambda file: (order.get(file[0], len(order)), file))
    return [f"{folder}/{file.removesuffix('.yaml')}" for folder, file in files]


def _find_text(name: str) -> tuple[str, str]:
    """Return the text of a config and the name that errors show. A file goes before a shipped config of that name."""
    path = user_path(name, "CONFIG")
    # is_file, not exists: a folder digits/dfa of the user must not hide the shipped config of that name.
    if path.is_file():
        return read_text(path, LARGEST_YAML), str(path)
    if name in shipped():
        return (resources.files("bpfree") / "configs" / f"{name}.yaml").read_text(encoding="utf-8"), name
    if path.suffix in (".yaml", ".yml"):
        raise UserError(f"config file '{name}' does not exist. `bpfree list configs` shows the shipped ones")
    raise unknown("config", name, shipped())


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set one dotted key of a config's plain values, in place.

    Args:
        values: the sections. A section that is only a name, such as `rule: dfa`, becomes a mapping first.
        override: "section.key=value"; the value is YAML.

    Raises:
        UserError: the override has another form, or its value is not YAML.

    Example:
        >>> values = {"rule": "noprop_fm"}
        >>> apply_override(values, "rule.steps=5")
        >>> values
        {'rule': {'name': 'noprop_fm', 'steps': 5}}
    """
    # At the first "=": the value may contain others, as in net={name: mlp, file: a=b}.
    key, equals, text = override.partition("=")
    path = key.split(".")
    if not equals or not all(path):
        raise UserError(f"override: found {shown(override)}, allowed: section.key=value, such as train.epochs=3")
    value = parse_yaml(text, f"override {shown(override)}")
    path = _present_path(values, path)
    for part in path[:-1]:
        # Copied on the way: `values` may share sections with a config that other runs use.
        inner = values.get(part)
        if not isinstance(inner, str | dict | None):
            raise UserError(f"override {shown(override)}: {part} is {shown(inner)}, allowed: a section")
        values[part] = {"name": inner} if isinstance(inner, str) else dict(inner or {})
        values = values[part]
    values[path[-1]] = value


def _present_path(values: dict[str, Any], path: list[str]) -> list[str]:
    """Return the place where an override belongs today, if it names an option by a key of an earlier version.

    Old keys in the section itself move first. Otherwise the section could have the same option at both places, and the
    override would not replace the value in the file.
    """
    section = path[0]
    moved = old_keys(section, values.get(section))
    if not moved or len(path) == 1:
        return path
    if isinstance(values.get(section), dict):
        values[section] = move_old_keys(values[section], moved, section)
    if len(path) == 2 and path[1] in moved:
        warnings.warn(f"{'.'.join(path)} is now {section}.{moved[path[1]]}", DeprecationWarning, stacklevel=3)
        return [section, *moved[path[1]].split(".")]
    return path
