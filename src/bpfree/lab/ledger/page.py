"""The page docs/ledger.md: a table for each family of rules, and a section for each entry."""

import statistics
from collections.abc import Mapping, Sequence

from bpfree.lab.ledger.status import Status, Verdict
from bpfree.lab.report.format import heads

FAMILIES: Mapping[str, Sequence[str]] = {
    "Backprop and the control": ("backprop", "shallow"),
    "Feedback": ("fa", "usf", "brsf", "frsf", "dfa", "grape", "drtp"),
    "Local losses": ("local", "mono_forward", "pred", "sim", "predsim"),
    "Auxiliary nets": ("greedy", "dgl", "infopro", "auglocal"),
    "Block-local Transformers": ("solo", "lopt"),
    "Two forward passes, and competing channels": ("forward_forward", "pepita", "cwcomp", "deeper_forward", "hff"),
    "NoProp": ("noprop_dt", "noprop_ct", "noprop_fm", "noprop_hybrid", "noprop_linear"),
    "DiffusionBlocks": ("diffusion_blocks",),
    "Black box and forward gradients": ("recombine", "es", "eggroll", "spsa", "snes", "pgpe", "forward_gradient"),
}
_OTHERS = "Others"
MISSING = "\u2013"  # a dash
_COLUMNS = (
    *("rule", "data, net", "published", "ours", "difference", "verdict"),
    *("CPU s", "MB per step", "date", "machine"),
)
_RIGHT = ("published", "ours", "difference", "CPU s", "MB per step")  # columns of numbers
_HEADER = """# The ledger

This page compares the published results of each rule with the results of the configs in this repository.
`bpfree ledger` writes it from [benchmarks/ledger.yaml](../benchmarks/ledger.yaml) and `benchmarks/results/*.json`, so
changes by hand are lost. `bpfree ledger --run NAME` trains the runs of an entry that have no result yet.

{counts}

The columns:

- published, ours: test accuracy in %, unless the entry names another metric. Ours is the mean ± standard deviation over
  n seeds. The difference is ours minus published.
- verdict: 🟢 our mean is the published value or better, or it is at most the tolerance worse (0.1 points, unless the
  entry says otherwise). 🔴 our mean is worse than that. ⚪ nobody published a value, or our result is missing.
  "Other setting" means that net, data or augmentation differ from the source. Then the published value is only a rough
  guide, and the verdict is not that of a reproduction. The entry says what differs, also if it is only the recipe
  (optimizer, epochs, precision).
- CPU s: CPU seconds of training and validation, the mean of the runs.
- MB per step: peak memory of one training step beyond parameters and optimizer state, the mean of the runs."""


def render(statuses: Sequence[Status]) -> str:
    """Return the page as Markdown.

    Args:
        statuses: the status of every entry, in the order of the ledger.
    """
    parts = [_HEADER.format(counts=_counts(statuses))]
    families = {rule: family for family, rules in FAMILIES.items() for rule in rules}
    for family in (*FAMILIES, _OTHERS):
        members = [status for status in statuses if families.get(status.entry.rule, _OTHERS) == family]
        if members:
            # `index` finds the first place: the order of a family counts, and rules without a family go by name.
            rules = [*FAMILIES.get(family, ()), *sorted({status.entry.rule for status in members})]
            members.sort(key=lambda status: rules.index(status.entry.rule))
            parts += [f"## {family}", _table(members), *(_section(status) for status in members)]
    return "\n\n".join(parts) + "\n"


def _counts(statuses: Sequence[Status]) -> str:
    """Return a sentence with the number of entries of each verdict."""
    return f"{len(statuses)} entries: {count_verdicts(statuses)}."


def count_verdicts(statuses: Sequence[Status]) -> str:
    """Return the number of entries of each verdict, such as "26 🟢 reached, 5 🔴 not reached, ...".

    Args:
        statuses: the status of every entry.
    """
    verdicts = [status.verdict for status in statuses]
    return ", ".join(f"{verdicts.count(verdict)} {verdict.value}" for verdict in Verdict)


def _table(statuses: Sequence[Status]) -> str:
    """Return a Markdown table with one row for each entry."""
    bars = ["---:" if column in _RIGHT else "---" for column in _COLUMNS]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (_COLUMNS, bars, *(_row(s) for s in statuses)))


def _row(status: Status) -> list[str]:
    """Return the cells of an entry's row, in the order of `_COLUMNS`."""
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
    """Return the verdict, with a remark if the source used another setting."""
    # An entry without a published value or without runs has nothing that another setting could excuse.
    compared = status.verdict in (Verdict.REACHED, Verdict.NOT_REACHED)
    return status.verdict.value + (", other setting" if compared and status.entry.setting else "")


def _ours(status: Status) -> str:
    """Return mean, standard deviation and number of runs; "n = 1 of 3" if runs are missing."""
    if not status.runs:
        return MISSING
    spread = "" if status.std is None else f" ± {_number(status, status.std)}"
    wanted = f" of {len(status.entry.seeds)}" if status.missing else ""
    return f"{_number(status, status.mean)}{spread} (n = {len(status.runs)}{wanted})"


def _number(status: Status, value: float, sign: str = "-") -> str:
    """Return a value with the entry's number of decimal places; sign="+" also shows a plus."""
    return f"{value:{sign}.{status.entry.places}f}"


def _machines(status: Status) -> list[str]:
    """Return the machines that trained the runs of an entry, each once."""
    return list(dict.fromkeys(str(run.machine) for run in status.runs))


def _cell(text: str) -> str:
    """Return a text as a cell of a Markdown table: on one line, and with its "|" escaped."""
    return " ".join(text.split()).replace("|", r"\|")


def _section(status: Status) -> str:
    """Return the section of an entry: its facts, remarks and commands."""
    entry = status.entry
    commands = f"```\nbpfree ledger --run {entry.name}\n{entry.command}\n```"
    parts = [f"### {entry.name}", " ".join(_facts(status)), " ".join(entry.about.split()), commands]
    return "\n\n".join(part for part in parts if part)


def _facts(status: Status) -> list[str]:
    """Return the sentences about an entry: its source, its setting and its runs."""
    entry = status.entry
    source = entry.source if entry.url is None else f"[{entry.source}]({entry.url})"
    value = "No published value" if entry.published is None else f"Published: {_number(status, entry.published)}"
    unit = "" if entry.metric == "accuracy" else f" ({entry.metric})"
    facts = [f"`{entry.rule}`, {_verdict(status)}. {value}{unit}; {source}."]
    if entry.setting:
        facts.append(f"Setting of the source: {entry.setting}.")
    facts.append(f"Our setting: {entry.data}, {entry.net}.")
    if entry.tolerance != 0.1:
        facts.append(f"Tolerance: {entry.tolerance:g}.")
    if status.outdated:
        facts.append("The config has changed since the results were measured, so the results do not count.")
    return [*facts, *_measured(status)]


def _measured(status: Status) -> list[str]:
    """Return a sentence about the runs of an entry, or an empty list if there are none."""
    runs = status.runs
    if not runs:
        return []
    scores = ", ".join(f"{_number(status, run.score)} (seed {run.seed})" for run in runs)
    # Runs of one entry may differ in machine, precision or version; each kind is named once.
    kinds = [
        f"{run.epochs} epochs, {run.precision}, {run.threads} thread{'s' * (run.threads > 1)}, "
        f"bpfree {run.versions['bpfree']}, torch {run.versions['torch']}"
        for run in runs
    ]
    first = runs[0]
    size = f"{first.parameters + first.rule_parameters:,} parameters"
    if (added := heads(first.model_dump())) != MISSING:
        size += f" (heads: {added})"
    return [f"Runs: {scores}; {size}; {'; '.join(dict.fromkeys(kinds))}."]
