"""docs/ledger.md: every entry in a table of its family, and what is known of each."""

import statistics
from collections.abc import Mapping, Sequence

from bpfree.lab.ledger.status import Standing, Verdict

FAMILIES: Mapping[str, Sequence[str]] = {
    "Backprop and the control": ("backprop", "shallow"),
    "Feedback": ("fa", "usf", "brsf", "frsf", "dfa", "drtp"),
    "Local losses": ("local", "mono_forward", "pred", "sim", "predsim"),
    "Two forward passes, and competing channels": ("forward_forward", "pepita", "cwcomp"),
    "NoProp": ("noprop_dt", "noprop_ct", "noprop_fm", "noprop_hybrid", "noprop_linear"),
    "Black box and forward gradients": ("recombine", "es", "eggroll", "spsa", "snes", "pgpe", "forward_gradient"),
}
_OTHERS = "Others"
MISSING = "\u2013"  # a dash
_COLUMNS = (
    *("rule", "data, net", "published", "ours", "difference", "verdict"),
    *("CPU s", "step MB", "date", "machine"),
)
_RIGHT = ("published", "ours", "difference", "CPU s", "step MB")
_HEADER = """# The ledger

What was published for each rule, and what the configs of this repository come to. Written by `bpfree ledger` from
[benchmarks/ledger.yaml](../benchmarks/ledger.yaml) and `benchmarks/results/*.json`; changes by hand are lost.
`bpfree ledger --run NAME` trains the seeds of an entry that have no result yet.

{counts}

Test accuracy in % unless an entry says otherwise. Ours is the mean ± standard deviation over n seeds. 🟢: the mean is
the published value or better, or lacks no more than the tolerance, 0.1 points unless an entry says otherwise. 🔴: it is
not reached. ⚪: nothing to compare with, or not measured yet. "Other setting": net, data or augmentation are not those
of the source, so that the figure is a landmark and the verdict no reproduction; the entry says what differs, also where
it is the recipe alone (optimiser, epochs, precision). CPU s is training and validation of one run, step MB what one
training step takes beyond parameters and optimiser state; both are means."""


def render(standings: Sequence[Standing]) -> str:
    """The page."""
    parts = [_HEADER.format(counts=_counts(standings))]
    families = {rule: family for family, rules in FAMILIES.items() for rule in rules}
    for family in (*FAMILIES, _OTHERS):
        own = [standing for standing in standings if families.get(standing.entry.rule, _OTHERS) == family]
        if own:
            rules = [*FAMILIES.get(family, ()), *sorted({standing.entry.rule for standing in own})]
            own.sort(key=lambda standing: rules.index(standing.entry.rule))
            parts += [f"## {family}", _table(own), *(_section(standing) for standing in own)]
    return "\n\n".join(parts) + "\n"


def _counts(standings: Sequence[Standing]) -> str:
    verdicts = [standing.verdict for standing in standings]
    told = ", ".join(f"{verdicts.count(verdict)} {verdict.value}" for verdict in Verdict)
    return f"{len(standings)} entries: {told}."


def _table(standings: Sequence[Standing]) -> str:
    bars = ["---:" if column in _RIGHT else "---" for column in _COLUMNS]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (_COLUMNS, bars, *(_row(s) for s in standings)))


def _row(standing: Standing) -> list[str]:
    entry, runs = standing.entry, standing.runs
    memory = [run.step_memory_bytes for run in runs if run.step_memory_bytes is not None]
    return [
        f"[`{entry.rule}`](#{entry.name})",
        _cell(f"{entry.data}, {entry.net}"),
        MISSING if entry.published is None else f"[{_number(standing, entry.published)}]({entry.url})",
        _ours(standing),
        MISSING if standing.difference is None else _number(standing, standing.difference, "+"),
        _verdict(standing),
        f"{statistics.fmean(run.cpu_seconds for run in runs):,.0f}" if runs else MISSING,
        f"{statistics.fmean(memory) / 1e6:.1f}" if memory else MISSING,
        max(run.date for run in runs).isoformat() if runs else MISSING,
        _cell("; ".join(_machines(standing))) or MISSING,
    ]


def _verdict(standing: Standing) -> str:
    compared = standing.verdict in (Verdict.REACHED, Verdict.NOT_REACHED)
    return standing.verdict.value + (", other setting" if compared and standing.entry.setting else "")


def _ours(standing: Standing) -> str:
    if not standing.runs:
        return MISSING
    spread = "" if standing.std is None else f" ± {_number(standing, standing.std)}"
    wanted = f" of {len(standing.entry.seeds)}" if standing.missing else ""
    return f"{_number(standing, standing.mean)}{spread} (n = {len(standing.runs)}{wanted})"


def _number(standing: Standing, value: float, sign: str = "-") -> str:
    return f"{value:{sign}.{standing.entry.places}f}"


def _machines(standing: Standing) -> list[str]:
    return list(dict.fromkeys(str(run.machine) for run in standing.runs))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def _section(standing: Standing) -> str:
    entry = standing.entry
    commands = f"```\nbpfree ledger --run {entry.name}\n{entry.command}\n```"
    parts = [f"### {entry.name}", " ".join(_facts(standing)), " ".join(entry.about.split()), commands]
    return "\n\n".join(part for part in parts if part)


def _facts(standing: Standing) -> list[str]:
    """Sentences."""
    entry = standing.entry
    source = entry.source if entry.url is None else f"[{entry.source}]({entry.url})"
    figure = "No published figure" if entry.published is None else f"Published: {_number(standing, entry.published)}"
    unit = "" if entry.metric == "accuracy" else f" ({entry.metric})"
    facts = [f"`{entry.rule}`, {_verdict(standing)}. {figure}{unit}; {source}."]
    if entry.setting:
        facts.append(f"There: {entry.setting}.")
    facts.append(f"Here: {entry.data}, {entry.net}.")
    if entry.tolerance != 0.1:
        facts.append(f"Tolerance: {entry.tolerance:g}.")
    if standing.outdated:
        facts.append("Its results are of a config that has changed since, and do not count.")
    return [*facts, *_measured(standing)]


def _measured(standing: Standing) -> list[str]:
    runs = standing.runs
    if not runs:
        return []
    scores = ", ".join(f"{_number(standing, run.score)} (seed {run.seed})" for run in runs)
    kinds = [
        f"{run.epochs} epochs, {run.precision}, {run.threads} thread{'s' * (run.threads > 1)}, "
        f"bpfree {run.versions['bpfree']}, torch {run.versions['torch']}"
        for run in runs
    ]
    first = runs[0]
    parameters = f"{first.parameters + first.rule_parameters:,} parameters"
    return [f"Runs: {scores}; {parameters}; {'; '.join(dict.fromkeys(kinds))}."]
