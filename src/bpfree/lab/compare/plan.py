"""The plan of a comparison: its groups, and the rows of each group."""

from collections.abc import Sequence
from typing import Any

from bpfree.errors import UserError, shown
from bpfree.lab.compare.controls import DEEP_SUPERVISION, complete
from bpfree.lab.compare.entries import Entry, Group, name_nets
from bpfree.lab.compare.recipes import BASELINE, Recipes, RuleChoice
from bpfree.rule import Rule
from bpfree.rules import RULES
from bpfree.runs.config import Config
from bpfree.runs.config_file import load_config
from bpfree.spec import lookup, split_spec

__all__ = ["BASELINE", "Entry", "Group", "plan", "plan_rules"]


def plan(
    configs: Sequence[str], rules: Sequence[RuleChoice], overrides: Sequence[str] = (), *, controls: bool = True
) -> list[Group]:
    """Return the groups of a comparison.

    Configs with the same data, net, task and epochs form one group. Without `rules`, each config is a row. With
    `rules`, a config only gives data, net and epochs, and each rule is a row: its options, optimizer and schedule come
    from the shipped config of the rule for this data set, or from the given config if there is none. Each group also
    gets backprop on each of its nets, and control experiments; see `bpfree.lab.compare.controls`.

    Args:
        configs: YAML files or names of shipped configs.
        rules: names or specs of rules; "all" for every rule; () to train the configs as they are.
        overrides: changes `section.key=value` of every config.
        controls: False to leave out the control experiments.

    Raises:
        UserError: a name is unknown, or none of the rules can train the net for the task.

    Example:
        >>> (group,) = plan(["digits/mlp"], ["dfa"])
        >>> [entry.name for entry in group.entries]
        ['backprop', 'backprop, checkpointed', 'backprop, accumulated', 'shallow', 'dfa']
    """
    chosen = _checked(rules)
    groups: list[Group] = []
    for config_name in configs:
        base = load_config(config_name, overrides)
        group = next((g for g in groups if _shared(g.config) == _shared(base)), None)
        if group is None:
            group = Group(_short(config_name), base, [])
            groups.append(group)
        recipes = Recipes(base)
        group.entries += [recipes.entry(rule) for rule in chosen] if chosen else [Entry(_short(config_name), base)]
    _refuse_if_all_are_refused([entry for group in groups for entry in group.entries])
    return [_completed(group, Recipes(group.config), controls=controls) for group in groups]


def plan_rules(name: str, recipes: Recipes, rules: Sequence[RuleChoice], *, controls: bool = True) -> Group:
    """Return the group of rules that train a net on data which the user passed from Python.

    Args:
        name: the name of the group.
        recipes: makes the configs of rules on this net and these data.
        rules: names, specs, or functions that make a rule; "all" for every rule.
        controls: False to leave out the control experiments.

    Raises:
        UserError: a name is unknown, or none of the rules can train the net for the task.
    """
    entries = [recipes.entry(rule) for rule in _checked(rules)]
    _refuse_if_all_are_refused(entries)
    return _completed(Group(name, recipes.base, entries), recipes, controls=controls)


def _checked(rules: Sequence[RuleChoice]) -> list[RuleChoice]:
    """Return each rule once, with "all" replaced by all names; raise UserError for a name that is unknown."""
    every = [name for name in RULES if name != DEEP_SUPERVISION]  # a control, which each rule with heads brings
    chosen: list[RuleChoice] = []
    for rule in rules:
        chosen += [name for name in (every if rule == "all" else [rule]) if name not in chosen]
    for rule in chosen:
        if isinstance(rule, Rule):
            raise UserError(
                f"rules: found a {type(rule).__name__} object, allowed: a name, a spec, or a function that makes a "
                "new rule for each run, such as lambda: DFA(feedback='orthogonal')"
            )
        if not callable(rule):
            if not isinstance(rule, str | dict):
                raise UserError(f"rules: found {shown(rule)}, allowed: a name, a spec, or a function that makes a rule")
            lookup(RULES, split_spec(rule, "rule")[0], "rule", Rule)
    return chosen


def _refuse_if_all_are_refused(entries: Sequence[Entry]) -> None:
    """Raise UserError if no rule can be trained. One that is refused gets a row with its reason."""
    if entries and all(entry.refused for entry in entries):
        raise UserError(entries[0].refused)


def _completed(group: Group, recipes: Recipes, *, controls: bool) -> Group:
    """Return a group with baselines and controls, with a different name for each row."""
    rows = complete(recipes, group.entries, controls=controls)
    name_nets(rows)
    seen: dict[str, int] = {}
    for row in rows:
        seen[row.name] = seen.get(row.name, 0) + 1
        if seen[row.name] > 1:
            row.name = f"{row.name} ({seen[row.name]})"
    return Group(group.name, group.config, rows)


def _shared(config: Config) -> Any:
    """Return what all rows of a group have in common; where the data lie does not count."""
    plain = config.plain()
    return plain["data"] | {"dir": None}, plain["net"], plain["task"], plain["train"]["epochs"]


def _short(name: str) -> str:
    """Return the name of a config without its folder and ending."""
    return name.rpartition("/")[2].removesuffix(".yaml").removesuffix(".yml")
