"""The plan of a comparison: its groups, their rows, and the config of each row."""

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
_RECIPE = ("rule", "optimizer", "schedule")  # sections that a rule brings from its shipped config


@dataclass
class Entry:
    """A row of a comparison: a rule with its config.

    Attributes:
        name: the name of the row and of the folders of its runs.
        config: the complete config of the first seed.
        notes: remarks that say how the row differs from the other rows.
        refused: why the rule cannot train this net for this task; the row is then shown but not trained. Otherwise "".
    """

    name: str
    config: Config
    notes: list[str] = field(default_factory=list)
    refused: str = ""


@dataclass
class Group:
    """Rows that have data, net and epochs in common, and one table in the report.

    Attributes:
        name: the name of the first config of the group.
        config: this config.
        entries: the rows; backprop comes first.
    """

    name: str
    config: Config
    entries: list[Entry]


def plan(configs: Sequence[str], rules: Sequence[str], overrides: Sequence[str] = ()) -> list[Group]:
    """Return the groups of a comparison.

    Configs with the same data, net and epochs form one group. Without `rules`, each config is a row. With `rules`, a
    config only gives data, net and epochs, and each rule is a row: its options, optimizer and schedule come from the
    shipped config of the rule for this data set, or from the given config if there is none. Each group also gets
    backprop, backprop with checkpointed activations, and backprop with accumulated gradients.

    Args:
        configs: YAML files or names of shipped configs.
        rules: names of rules; "all" for every rule; () to train the configs as they are.
        overrides: changes `section.key=value` of every config.

    Raises:
        UserError: a name is unknown, or none of the rules can train the net for the task.

    Example:
        >>> (group,) = plan(["digits/mlp"], ["dfa"])
        >>> [entry.name for entry in group.entries]
        ['backprop', 'backprop, checkpointed', 'backprop, accumulated', 'dfa']
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
        new = [_or_refused(base, name) for name in names] or [Entry(_short(config_name), base)]
        present = [entry.config for entry in group.entries]  # `--rules backprop` must not train backprop twice
        group.entries += [entry for entry in new if entry.refused or entry.config not in present]
        _add_baseline_of_special_nets(group)
    for group in groups:
        _give_distinct_names(group)
    of_rules = [entry for group in groups for entry in group.entries if entry.name in names]
    # One rule that is refused gets a row with its reason; if all are refused, there is nothing to compare.
    if of_rules and all(entry.refused for entry in of_rules):
        raise UserError(of_rules[0].refused)
    return groups


def _shared(config: Config) -> Any:
    """Return what all rows of a group have in common; where the data lie does not count."""
    plain = config.plain()
    return plain["data"] | {"dir": None}, plain["net"], plain["task"], plain["train"]["epochs"]


def _short(name: str) -> str:
    """Return the name of a config without its folder and ending."""
    return name.rpartition("/")[2].removesuffix(".yaml").removesuffix(".yml")


def _baselines(base: Config) -> list[Entry]:
    """Return backprop in three forms: plain, and with the two usual ways to save its memory.

    Whether backprop can train the net is not checked here: a run that cannot begin fails, and its row says why.
    """
    if base.net["name"] == "denoiser":  # its blocks have separate losses, and the whole net has none
        return []
    plain = base if base.rule == {"name": BASELINE} else _with_rule(base, BASELINE).config
    options: Mapping[str, Mapping[str, Any]] = {
        BASELINE: {},
        "backprop, checkpointed": {"checkpoint": True},
        "backprop, accumulated": {"accumulate": 4},
    }
    return [Entry(name, _changed(plain, rule={"name": BASELINE, **extra})) for name, extra in options.items()]


def _or_refused(base: Config, name: str) -> Entry:
    """Return the row of a rule; if the rule cannot train the config's net, a row that says why."""
    try:
        return _with_rule(base, name)
    except UserError as error:
        return Entry(name, base, refused=str(error))


def _with_rule(base: Config, name: str) -> Entry:
    """Return the row of a rule on the data, net and epochs of a config.

    Raises:
        UserError: the rule does not fit the net or task, or needs a special net that no shipped config has.
    """
    if name == base.rule["name"]:
        return Entry(name, base)
    recipe = f"{base.data.name}/{name}"
    needed = getattr(lookup(RULES, name, "rule", Rule), "needs_net", None)
    if recipe not in shipped():
        if needed is not None and needed != base.net["name"]:
            raise UserError(
                f"rules: found {name}, which needs a net '{needed}', but no shipped config {recipe} has one. Write a "
                "config for this rule, and give both configs: bpfree compare CONFIG OTHER_CONFIG"
            )
        return Entry(name, _changed(base, rule={"name": name}), [f"with the optimizer of {base.rule['name']}"])
    shipped_config = load_config(recipe)
    taken: dict[str, Any] = {section: getattr(shipped_config, section) for section in _RECIPE}
    notes = []
    if needed is not None and needed != base.net["name"]:
        taken["net"] = _like(shipped_config.net, base.net)
        notes.append(_note_on_net(taken["net"]))
    entry = Entry(name, _changed(base, **taken), notes)
    entry.config.train.clip = shipped_config.train.clip  # it belongs to the recipe, but lies in the shared section
    return entry


def _add_baseline_of_special_nets(group: Group) -> None:
    """Add backprop on the special net that a rule of the group needs, if there is a shipped config for it."""
    nets = {entry.config.net["name"] for entry in group.entries} - {group.config.net["name"]}
    for net in sorted(nets):
        name = f"{BASELINE}_{net}"
        recipe = f"{group.config.data.name}/{name}"
        if recipe in shipped() and all(entry.name != name for entry in group.entries):
            special = load_config(recipe)
            taken = {section: getattr(special, section) for section in _RECIPE}
            config = _changed(group.config, **taken, net=_like(special.net, group.config.net))
            config.train.clip = special.train.clip
            at = sum(entry.name.startswith(BASELINE) for entry in group.entries)  # after the other baselines
            group.entries.insert(at, Entry(name, config, [_note_on_net(config.net)]))


def _like(special: dict[str, Any], net: dict[str, Any]) -> dict[str, Any]:
    """Return a special net whose backbone is of the kind of the group's net, so that both are MLPs, for example."""
    if "backbone" not in special or net["name"] not in get_args(BackboneName) or _backbone(special) == net["name"]:
        return special
    return special | {"backbone": net["name"]}  # the bare name: options of another backbone would not fit


def _backbone(net: dict[str, Any]) -> str | None:
    """Return the name of a net's backbone, which is a name or a section."""
    backbone = net.get("backbone")
    return backbone.get("name") if isinstance(backbone, Mapping) else backbone


def _note_on_net(net: dict[str, Any]) -> str:
    """Return the remark of a row that has another net than its group."""
    kind = f"{net['name']}, {_backbone(net)}" if "backbone" in net else net["name"]
    return f"on another net ({kind})"


def _changed(config: Config, **sections: Any) -> Config:
    """Return a checked copy of a config with some sections replaced."""
    values = config.plain() | deepcopy(sections)  # copied: rows must not share a section that a run changes
    return parse(values)


def _give_distinct_names(group: Group) -> None:
    """Number the rows that have the same name."""
    seen: dict[str, int] = {}
    for entry in group.entries:
        seen[entry.name] = seen.get(entry.name, 0) + 1
        if seen[entry.name] > 1:
            entry.name = f"{entry.name} ({seen[entry.name]})"
