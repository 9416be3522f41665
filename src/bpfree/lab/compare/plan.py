"""Which runs a comparison is made of."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, get_args

from bpfree.errors import UserError
from bpfree.nets.denoiser import BackboneName
from bpfree.rule import Rule
from bpfree.rules import RULES
from bpfree.runs.config import Config, parse
from bpfree.runs.config_file import load_config, shipped
from bpfree.spec import lookup

BASELINE = "backprop"
_RECIPE = ("rule", "optimizer", "schedule")


@dataclass
class Entry:
    """A row of a comparison.

    Attributes:
        name: of the row, and of its runs' folders.
        config: complete, for the first seed.
        notes: in what it differs from its neighbours.
        refused: why the rule cannot train this net for this task; it is then shown and not run.
    """

    name: str
    config: Config
    notes: list[str] = field(default_factory=list)
    refused: str = ""


@dataclass
class Group:
    """Entries that share data, net and epochs.

    Attributes:
        name: of the config that it was made from.
        config: that one.
        entries: the baselines first.
    """

    name: str
    config: Config
    entries: list[Entry]


def plan(configs: Sequence[str], rules: Sequence[str], overrides: Sequence[str] = ()) -> list[Group]:
    """The groups of a comparison.

    Configs that share data, net and epochs make one group. Each stands for itself; with `rules` each stands for its
    data, net and epochs, and every rule comes with the options, optimiser and schedule of the shipped config of its
    name for that data set, or else with those of the config. Beside them come backprop, backprop with checkpointed
    activations and backprop with accumulated gradients.

    Args:
        configs: YAML files or shipped configs.
        rules: names; "all" for every rule there is; none to take the configs as they are.
        overrides: `section.key=value`, of every config.

    Raises:
        UserError: an unknown name, or no rule can train the net for the task.
    """
    names = list(dict.fromkeys(name for rule in rules for name in (RULES if rule == "all" else [rule])))
    for name in names:
        lookup(RULES, name, "rule", Rule)
    groups: list[Group] = []
    for config_name in configs:
        base = load_config(config_name, overrides)
        group = next((g for g in groups if _shared(g.config) == _shared(base)), None)
        if group is None:
            group = Group(_short(config_name), base, _baselines(base))
            groups.append(group)
        made = [_or_refused(base, name) for name in names] or [Entry(_short(config_name), base)]
        known = [entry.config for entry in group.entries]
        group.entries += [entry for entry in made if entry.refused or entry.config not in known]
        _add_baseline_of_own_nets(group)
    for group in groups:
        _name_apart(group)
    asked = [entry for group in groups for entry in group.entries if entry.name in names]
    if asked and all(entry.refused for entry in asked):
        raise UserError(asked[0].refused)
    return groups


def _shared(config: Config) -> Any:
    plain = config.plain()
    return plain["data"] | {"dir": None}, plain["net"], plain["task"], plain["train"]["epochs"]


def _short(name: str) -> str:
    return name.rpartition("/")[2].removesuffix(".yaml").removesuffix(".yml")


def _baselines(base: Config) -> list[Entry]:
    """Backprop in three ways. A net that it cannot train refuses it when it is run."""
    if base.net["name"] == "denoiser":  # whose blocks have no loss in common
        return []
    plain = base if base.rule == {"name": BASELINE} else _with_rule(base, BASELINE).config
    options: Mapping[str, Mapping[str, Any]] = {
        BASELINE: {},
        "backprop, checkpointed": {"checkpoint": True},
        "backprop, accumulated": {"accumulate": 4},
    }
    return [Entry(name, _changed(plain, rule={"name": BASELINE, **extra})) for name, extra in options.items()]


def _or_refused(base: Config, name: str) -> Entry:
    try:
        return _with_rule(base, name)
    except UserError as error:
        return Entry(name, base, refused=str(error))


def _with_rule(base: Config, name: str) -> Entry:
    """The rule on the config's data, net and epochs."""
    if name == base.rule["name"]:
        return Entry(name, base)
    recipe = f"{base.data.name}/{name}"
    needed = getattr(lookup(RULES, name, "rule", Rule), "needs_net", None)
    if recipe not in shipped():
        if needed is not None and needed != base.net["name"]:
            raise UserError(
                f"rules: {name} needs a net '{needed}', and there is no shipped config {recipe} to take it from. Give "
                "a config of your own for it instead: bpfree compare CONFIG OTHER_CONFIG"
            )
        return Entry(name, _changed(base, rule={"name": name}), [f"optimiser as of {base.rule['name']}"])
    own = load_config(recipe)
    taken: dict[str, Any] = {section: getattr(own, section) for section in _RECIPE}
    notes = []
    if needed is not None and needed != base.net["name"]:
        taken["net"] = _like(own.net, base.net)
        notes.append(_own_net(taken["net"]))
    entry = Entry(name, _changed(base, **taken), notes)
    entry.config.train.clip = own.train.clip
    return entry


def _add_baseline_of_own_nets(group: Group) -> None:
    """Backprop on the net of the rules that need one of their own, where there is a config for it."""
    nets = {entry.config.net["name"] for entry in group.entries} - {group.config.net["name"]}
    for net in sorted(nets):
        name = f"{BASELINE}_{net}"
        recipe = f"{group.config.data.name}/{name}"
        if recipe in shipped() and all(entry.name != name for entry in group.entries):
            own = load_config(recipe)
            taken = {section: getattr(own, section) for section in _RECIPE} | {"net": _like(own.net, group.config.net)}
            config = _changed(group.config, **taken)
            config.train.clip = own.train.clip
            at = sum(entry.name.startswith(BASELINE) for entry in group.entries)
            group.entries.insert(at, Entry(name, config, [_own_net(config.net)]))


def _like(own: dict[str, Any], net: dict[str, Any]) -> dict[str, Any]:
    """A net that has a backbone, with one of the kind that the others are trained on."""
    if "backbone" not in own or net["name"] not in get_args(BackboneName) or _backbone(own) == net["name"]:
        return own
    return own | {"backbone": net["name"]}  # the bare name: options of another backbone would not fit


def _backbone(net: dict[str, Any]) -> str | None:
    """The name of a net's backbone, which is a name or a section."""
    backbone = net.get("backbone")
    return backbone.get("name") if isinstance(backbone, Mapping) else backbone


def _own_net(net: dict[str, Any]) -> str:
    kind = f"{net['name']}, {_backbone(net)}" if "backbone" in net else net["name"]
    return f"on a net of its own ({kind})"


def _changed(config: Config, **sections: Any) -> Config:
    """A copy with other sections, checked."""
    values = config.plain() | deepcopy(sections)
    return parse(values)


def _name_apart(group: Group) -> None:
    """Give no two entries one name."""
    seen: dict[str, int] = {}
    for entry in group.entries:
        seen[entry.name] = seen.get(entry.name, 0) + 1
        if seen[entry.name] > 1:
            entry.name = f"{entry.name} ({seen[entry.name]})"
