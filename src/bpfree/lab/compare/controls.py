"""Baselines and control experiments: the rows that a comparison adds for each net.

A difference from backprop on another net means nothing, and an accuracy alone means little. So each net gets backprop,
and the net that the user chose also gets the control experiments that a claim for a rule must pass:

shallow           the hidden layers stay random, and only the output layer learns
deep supervision  the heads of a local rule without the cuts: all of their losses train the whole net
forward gradient  as many forward passes as the black-box rule of the table that needs the most
"""

from collections.abc import Iterator, Sequence
from typing import Any

from bpfree.errors import UserError
from bpfree.lab.compare.entries import Entry, Kind, Net
from bpfree.lab.compare.recipes import BASELINE, SPECIAL_NETS, Recipes
from bpfree.population.rule import BlackBoxRule
from bpfree.runs.config import Config
from bpfree.runs.config_file import load_config, shipped

DEEP_SUPERVISION, FORWARD_GRADIENT, SHALLOW = "deep_supervision", "forward_gradient", "shallow"
_KINDS: dict[str, Kind] = {BASELINE: "baseline", SHALLOW: "control", DEEP_SUPERVISION: "control"}


def complete(recipes: Recipes, asked: Sequence[Entry], *, controls: bool) -> list[Entry]:
    """Return the rows of a table: those that the user asked for, with the baselines and controls of each net.

    Args:
        recipes: makes the configs of the rows.
        asked: the rows that the user asked for.
        controls: False to leave out the control experiments, and the forms of backprop that save memory. Plain backprop
            stays, since differences are from it.

    Returns:
        The rows of each net together: baselines, controls, rules. A row that the user asked for is not there twice.
    """
    nets: list[Net] = [recipes.base.net]
    nets += [entry.config.net for entry in asked if entry.config.net != recipes.base.net]
    rows: list[Entry] = []
    for i, net in enumerate(nets):
        if net not in nets[:i]:
            of_net = [entry for entry in asked if entry.config.net == net]
            rows += _of_net(recipes, net, of_net, controls=controls)
    return rows


def _of_net(recipes: Recipes, net: Net, asked: Sequence[Entry], *, controls: bool) -> list[Entry]:
    """Return the rows of one net."""
    for entry in asked:
        if not entry.refused:
            entry.kind = _KINDS.get(entry.config.rule["name"], "rule")
    rules = [entry for entry in asked if entry.kind == "rule" and not entry.refused]
    is_base = net == recipes.base.net
    if is_base:
        baselines = _baselines(recipes, asked, rules, savers=controls)
    else:
        baselines = _baseline_of_special_net(recipes, net, rules)
    extra = list(_controls(recipes, baselines[0], rules)) if controls and rules and is_base and baselines else []
    rows = _without_doubles([*baselines, *extra], asked)
    if baselines:
        for row in rows[1:]:
            row.baseline = rows[0].name
    order = ("baseline", "control", "rule")
    return sorted(rows, key=lambda row: order.index(row.kind))  # stable: rows of one kind keep their order


def _without_doubles(added: Sequence[Entry], asked: Sequence[Entry]) -> list[Entry]:
    """Return all rows. Where several have the same config, the first stands for all of them."""
    rows = list(added)
    for entry in asked:
        same = [row for row in rows if row.config == entry.config and not entry.refused and entry.make_rule is None]
        if same:
            same[0].added = False
        else:
            rows.append(entry)
    return rows


def _baselines(recipes: Recipes, asked: Sequence[Entry], rules: Sequence[Entry], *, savers: bool) -> list[Entry]:
    """Return backprop in three forms on the base's net: plain, and with the two usual ways to save its memory.

    The plain form is enough for a net that no row of the user has, for one that some rules need, and without `savers`.
    """
    plain = next((entry.config for entry in asked if entry.config.rule == {"name": BASELINE}), None)
    if plain is None:  # the user did not give a config of backprop
        base = recipes.base
        special = base.net["name"] in SPECIAL_NETS
        plain = _on_special_net(recipes, base.net, rules) if special else recipes.recipe(BASELINE).config
    if plain is None:
        return []
    forms: dict[str, dict[str, Any]] = {BASELINE: {}}
    if savers and asked and recipes.base.net["name"] not in SPECIAL_NETS:
        forms |= {"backprop, checkpointed": {"checkpoint": True}, "backprop, accumulated": {"accumulate": 4}}
    configs = {name: recipes.changed(plain, rule={"name": BASELINE, **options}) for name, options in forms.items()}
    return [Entry(name, config, kind="baseline", added=True) for name, config in configs.items()]


def _baseline_of_special_net(recipes: Recipes, net: Net, rules: Sequence[Entry]) -> list[Entry]:
    """Return backprop on a net that a rule brings with it; no row if backprop cannot train this net."""
    config = _on_special_net(recipes, net, rules)
    if config is None:
        for rule in rules:
            rule.notes.append("no difference: backprop cannot train this net as a whole")
        return []
    name = f"{BASELINE} (net of {rules[0].name})"
    return [Entry(name, config, kind="baseline", added=True)]


def _on_special_net(recipes: Recipes, net: Net, rules: Sequence[Entry]) -> Config | None:
    """Return the config of backprop through all blocks of a special net, or None if that is not possible.

    The recipe is that of the shipped config for backprop on such a net; without one, that of the rule.
    """
    if not _has_scores(net):
        return None
    name = f"{recipes.base.data.name}/{BASELINE}_{net['name']}"
    recipe = load_config(name) if name in shipped() else rules[0].config if rules else recipes.base
    return recipes.with_sections_of(recipe, rule={"name": BASELINE}, net=net)


def _has_scores(net: Net) -> bool:
    """Return True if a denoiser's plain forward pass gives scores: each block can read the scores before it."""
    head = net.get("head")
    predicts = head.get("predicts", "scores") if isinstance(head, dict) else "scores"
    return predicts == "scores" and (net.get("blocks") == 1 or net.get("embedding_dim") is None)


def _controls(recipes: Recipes, plain: Entry, rules: Sequence[Entry]) -> Iterator[Entry]:
    """Yield the control experiments for the rules of the base's net; none for a special net."""
    if recipes.base.net["name"] in SPECIAL_NETS:
        return
    with_backprop = Recipes(plain.config, recipes.objects)  # a control without a recipe gets the optimizer of backprop
    control = with_backprop.entry(SHALLOW)
    yield _as_control(control, SHALLOW, "control: random hidden layers, trained output layer")
    for entry in rules:
        if entry.make_rule is None and getattr(entry.rule(), "has_heads", False):
            yield _deep_supervision(recipes, entry)
    queries = {entry.name: _queries(entry) for entry in rules}
    most = max(queries, key=lambda name: queries[name])
    if queries[most]:
        control = with_backprop.entry({"name": FORWARD_GRADIENT, "directions": queries[most]})
        yield _as_control(
            control,
            f"{FORWARD_GRADIENT}, equal queries",
            f"control: {queries[most]} directions, as many forward passes as {most}",
        )


def _deep_supervision(recipes: Recipes, entry: Entry) -> Entry:
    """Return the control of a local rule with heads: the same heads, and no cut between the layers."""
    name, note = f"deep supervision ({entry.name})", f"control: the heads of {entry.name}, without cuts"
    of_entry = entry.config.rule
    # A bare name where there are no options, as people write it: then a config of the user is recognised as the same.
    rule = {"name": DEEP_SUPERVISION, "rule": of_entry if len(of_entry) > 1 else of_entry["name"]}
    try:
        control = Entry(name, recipes.with_sections_of(entry.config, rule=rule))
    except UserError as error:
        control = Entry(name, entry.config, refused=str(error))
    return _as_control(control, name, note)


def _as_control(entry: Entry, name: str, note: str) -> Entry:
    """Return a row as a control that the user did not ask for."""
    entry.name, entry.kind, entry.added = name, "control", True
    entry.notes.insert(0, note)
    return entry


def _queries(entry: Entry) -> int:
    """Return the number of members of a black-box rule, each of which takes a forward pass; 0 for other rules."""
    rule = entry.rule()
    return len(rule.members) if isinstance(rule, BlackBoxRule) else 0
