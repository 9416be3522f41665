"""docs/ledger.md: every entry in a table of its family, and what is known of each."""

import statistics
from collections.abc import Mapping, Sequence

from bpfree.lab.ledger.status import Status, Verdict

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


def render(statuses: Sequence[Status]) -> str:
    """The page."""
    parts = [_HEADER.format(counts=_counts(statuses))]
    families = {rule: family for family, rules in FAMILIES.items() for rule in rules}
    for family in (*FAMILIES, _OTHERS):
        own = [status for status in statuses if families.get(status.entry.rule, _OTHERS) == family]
        if own:
            rules = [*FAMILIES.get(family, ()), *sorted({status.entry.rule for status in own})]
            own.sort(key=lambda status: rules.index(status.entry.rule))
            parts += [f"## {family}", _table(own), *(_section(status) for status in own)]
    return "\n\n".join(parts) + "\n"


def _counts(statuses: Sequence[Status]) -> str:
    verdicts = [status.verdict for status in statuses]
    told = ", ".join(f"{verdicts.count(verdict)} {verdict.value}" for verdict in Verdict)
    return f"{len(statuses)} entries: {told}."


def _table(statuses: Sequence[Status]) -> str:
    bars = ["---:" if column in _RIGHT else "---" for column in _COLUMNS]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (_COLUMNS, bars, *(_row(s) for s in statuses)))


def _row(status: Status) -> list[str]:
    entry, runs = status.entry, status.runs
    memory = [run.step_memory_bytes for run in runs if run.step_memory_bytes is not None]
    return [
        f"[`{entry.rule}`](#{entry.name})",
        _cell(f"{entry.data}, {entry.net}"),
        MISSING if entry.published is None else f"[{_number(status, entry.published)}]({entry.url})",
        _ours(status),
        MISSING if status.difference is None else _number(status, status.difference, "+"),
        _verdict(status),
        f"{statistics.fmean(run.cpu_seconds for run in runs):,.0f}" if runs else MISSING,
        f"{statistics.fmean(memory) / 1e6:.1f}" if memory else MISSING,
        max(run.date for run in runs).isoformat() if runs else MISSING,
        _cell("; ".join(_machines(status))) or MISSING,
    ]


def _verdict(status: Status) -> str:
    compared = status.verdict in (Verdict.REACHED, Verdict.NOT_REACHED)
    return status.verdict.value + (", other setting" if compared and status.entry.setting else "")


def _ours(status: Status) -> str:
    if not status.runs:
        return MISSING
    spread = "" if status.std is None else f" ± {_number(status, status.std)}"
    wanted = f" of {len(status.entry.seeds)}" if status.missing else ""
    return f"{_number(status, status.mean)}{spread} (n = {len(status.runs)}{wanted})"


def _number(status: Status, value: float, sign: str = "-") -> str:
    return f"{value:{sign}.{status.entry.places}f}"


def _machines(status: Status) -> list[str]:
    return list(dict.fromkeys(str(run.machine) for run in status.runs))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def _section(status: Status) -> str:
    entry = status.entry
    commands = f"```\nbpfree ledger --run {entry.name}\n{entry.command}\n```"
    parts = [f"### {entry.name}", " ".join(_facts(status)), " ".join(entry.about.split()), commands]
    return "\n\n".join(part for part in parts if part)


def _facts(status: Status) -> list[str]:
    """Sentences."""
    entry = status.entry
    source = entry.source if entry.url is None else f"[{entry.source}]({entry.url})"
    figure = "No published figure" if entry.published is None else f"Published: {_number(status, entry.published)}"
    unit = "" if entry.metric == "accuracy" else f" ({entry.metric})"
    facts = [f"`{entry.rule}`, {_verdict(status)}. {figure}{unit}; {source}."]
    if entry.setting:
        facts.append(f"There: {entry.setting}.")
    facts.append(f"Here: {entry.data}, {entry.net}.")
    if entry.tolerance != 0.1:
        facts.append(f"Tolerance: {entry.tolerance:g}.")
    if status.outdated:
        facts.append("Its results are of a config that has changed since, and do not count.")
    return [*facts, *_measured(status)]


def _measured(status: Status) -> list[str]:
    runs = status.runs
    if not runs:
        return []
    scores = ", ".join(f"{_number(status, run.score)} (seed {run.seed})" for run in runs)
    kinds = [
        f"{run.epochs} epochs, {run.precision}, {run.threads} thread{'s' * (run.threads > 1)}, "
        f"bpfree {run.versions['bpfree']}, torch {run.versions['torch']}"
        for run in runs
    ]
    first = runs[0]
    parameters = f"{first.parameters + first.rule_parameters:,} parameters"
    return [f"Runs: {scores}; {parameters}; {'; '.join(dict.fromkeys(kinds))}."]
