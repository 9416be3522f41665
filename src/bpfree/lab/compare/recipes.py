"""The config of a rule on the data, net and epochs that a user chose."""

from collections.abc import Callable, Collection
from copy import deepcopy
from typing import Any, get_args

from bpfree.diffusion import DiffusionRule
from bpfree.errors import UserError
from bpfree.lab.compare.entries import Entry, Net, backbone_of
from bpfree.nets.denoiser import BackboneName
from bpfree.rule import Rule
from bpfree.rules import RULES
from bpfree.runs.config import Config, parse
from bpfree.runs.config_file import load_config, shipped
from bpfree.spec import Spec, lookup, split_spec

BASELINE = "backprop"
SPECIAL_NETS = {rule.needs_net for rule in RULES.values() if issubclass(rule, DiffusionRule)}
"""The names of nets that only some rules train."""
_SECTIONS = ("rule", "optimizer", "schedule")  # a rule brings them from its shipped config
_STAND_INS = {"net": "mlp", "rule": BASELINE, "data": "digits"}  # their names are valid

RuleChoice = Spec | Callable[[], Rule]
"""A rule that the user names: a name, a spec, or a function that makes the rule."""


class Recipes:
    """Makes the configs of rules on the data, net and epochs of one config.

    Args:
        base: the config.
        objects: the sections of `base` that only describe an object from Python ("net", "data").
    """

    def __init__(self, base: Config, objects: Collection[str] = ()) -> None:
        self.base = base
        self.objects = frozenset(objects)

    def entry(self, rule: RuleChoice) -> Entry:
        """Return the row of a rule; if the rule cannot train the net for the task, a row that says why.

        Args:
            rule: a name, a spec, or a function that makes the rule. Options of a spec replace those of the recipe.
        """
        if callable(rule):
            return self._of_function(rule)
        name, options = split_spec(rule, "rule")
        row = name if not options else f"{name} ({', '.join(f'{key}: {value}' for key, value in options.items())})"
        try:
            entry = self.recipe(name, options)
        except UserError as error:
            return Entry(row, self.base, refused=str(error))
        entry.name = row
        return entry

    def recipe(self, name: str, options: dict[str, Any] | None = None) -> Entry:
        """Return the row of a rule on the data, net and epochs of the base.

        Args:
            name: the name of the rule.
            options: options of the rule that replace those of the recipe.

        Raises:
            UserError: the rule does not fit the net or task, or needs a special net that no shipped config has.
        """
        changes = options or {}
        if name == self.base.rule["name"]:
            return Entry(name, self.changed(self.base, rule=self.base.rule | changes))
        recipe = f"{self.base.data.name}/{name}"
        kind = lookup(RULES, name, "rule", Rule)
        needed = getattr(kind, "needs_net", None)
        needs_another = needed is not None and self.base.net["name"] not in (needed, *getattr(kind, "also_takes", ()))
        if recipe not in shipped():
            if needs_another:
                raise UserError(
                    f"rules: found {name}, which needs a net '{needed}', but no shipped config {recipe} has one. Write "
                    "a config for this rule, and give both configs: bpfree compare CONFIG OTHER_CONFIG"
                )
            note = f"with the optimizer of {self.base.rule['name']}"
            return Entry(name, self.changed(self.base, rule={"name": name} | changes), [note])
        from_shipped = load_config(recipe)
        net = self._like_the_base(from_shipped.net) if needs_another else None
        return Entry(name, self.with_sections_of(from_shipped, rule=from_shipped.rule | changes, net=net))

    def with_sections_of(self, recipe: Config, *, rule: dict[str, Any], net: Net | None = None) -> Config:
        """Return the base with a rule, and with the optimizer, schedule and clipping of another config.

        Args:
            recipe: gives optimizer, schedule and clipping.
            rule: the section `rule`.
            net: the section `net`; default: that of the base.
        """
        taken: dict[str, Any] = {section: getattr(recipe, section) for section in _SECTIONS} | {"rule": rule}
        config = self.changed(self.base, **taken, **({} if net is None else {"net": dict(net)}))
        config.train.clip = recipe.train.clip  # it belongs to the recipe, but lies in the shared section
        return config

    def changed(self, config: Config, **sections: Any) -> Config:
        """Return a checked copy of a config with some sections replaced.

        Args:
            config: a complete config.
            sections: new sections by name.
        """
        values = config.plain() | deepcopy(sections)  # copied: rows must not share a section that a run changes
        # The name of an object is the name of its class, which may exist in this process alone.
        described = {section: values[section]["name"] for section in self.objects - sections.keys()}
        for section in described:
            values[section] = values[section] | {"name": _STAND_INS[section]}
        result = parse(values)
        for section, name in described.items():
            if section == "data":
                result.data.name = name
            else:
                getattr(result, section)["name"] = name
        return result

    def _of_function(self, make: Callable[[], Rule]) -> Entry:
        """Return the row of a rule that a function makes, named after its class.

        Raises:
            UserError: the function does not return a new rule.
        """
        rule, again = make(), make()
        if not isinstance(rule, Rule) or rule is again:
            what = type(rule).__name__ if not isinstance(rule, Rule) else "the same rule twice"
            raise UserError(
                f"rules: found a function that returns {what}, allowed: a function without arguments that makes a new "
                "Rule, such as lambda: DFA(feedback='orthogonal')"
            )
        config = self.changed(self.base, rule={"name": BASELINE})
        kind = type(rule)
        config.rule = {"name": f"{kind.__module__}:{kind.__qualname__}"}
        name = next((name for name, known in RULES.items() if known is kind), kind.__name__)
        return Entry(name, config, [f"with the optimizer of {self.base.rule['name']}"], make_rule=make)

    def _like_the_base(self, special: Net) -> Net:
        """Return a special net whose backbone is of the kind of the base's net, so that both are MLPs, for example."""
        kind = self.base.net["name"]
        if "backbone" not in special or kind not in get_args(BackboneName) or backbone_of(special) == kind:
            return special
        return {**special, "backbone": kind}  # the bare name: options of another backbone would not fit
