"""The model card of a run: README.md, which states rule, data, accuracy, locality, cost and licence."""

from collections.abc import Mapping
from typing import Any

import yaml

from bpfree.data.sets.facts import FACTS
from bpfree.rule import Locality
from bpfree.runs.run import Run
from bpfree.runs.summary import facts_of

_METRICS = ("accuracy", "balanced_accuracy", "micro_f1", "macro_f1", "mean_iou", "r2", "rmse", "valid_time", "loss")
_THROUGH = {"nothing": "nothing", "part": "one part of the net", "net": "the whole net"}
_READS = {"none": "nothing", "signs": "their signs", "initial": "their first values", "weights": "their values"}
_DIGITS = 4


def card(run: Run, name: str, licence: str | None) -> str:
    """Return the text of README.md, with the metadata that the Hub reads at its top.

    Args:
        run: a trained run.
        name: of the repository or the folder, from which `bpfree.hub.load` loads it.
        licence: of the weights, as the Hub names it, such as "mit"; None to state none.
    """
    head = yaml.safe_dump(_metadata(run, name, licence), sort_keys=False, allow_unicode=True)
    sections = {
        "What it is": _table(_what(run, licence)),
        "Accuracy": _table(_metrics(run)) if _metrics(run) else "The run has no test metrics.",
        "Locality": f"{_LOCALITY}\n\n{_table(_locality(run.trainer.rule.locality()))}",
        "Cost of training": _table(_cost(run.result)) if run.result else "The run was not finished.",
        "How to use it": _use(run, name),
    }
    text = "\n\n".join(f"## {title}\n\n{body}" for title, body in sections.items())
    return f"---\n{head}---\n\n# {name.rpartition('/')[2]}\n\n{_first_sentence(run)}\n\n{text}\n"


_LOCALITY = (
    "What the rule declares; `bpfree.certify` measures it. Backprop differentiates through the whole net, waits, reads "
    "the values of the weights, and its memory grows."
)


def _first_sentence(run: Run) -> str:
    what = "backprop, the baseline of" if rule_of(run) == "backprop" else f"the learning rule `{rule_of(run)}` of"
    return f"A net that was trained by {what} bpfree, which trains nets without end-to-end backpropagation."


def rule_of(run: Run) -> str:
    """Return the name of the rule of a run, for texts."""
    return str(run.config.rule["name"])


def _what(run: Run, licence: str | None) -> dict[str, str]:
    config, preprocess = run.config, run.preprocess
    facts = facts_of(run.setup, len(run.metrics), run.result)
    samples = f"{list(preprocess.shape)}, {preprocess.dtype}"
    if preprocess.inputs:
        samples = "; ".join(f"{name} {list(part.shape)}, {part.dtype}" for name, part in preprocess.inputs)
    known = FACTS.get(config.data.name)
    names = preprocess.class_names
    return {
        "rule": f"`{facts['rule']}`",
        "net": facts["net"],
        "task": f"`{facts['task']}`",
        "data": config.data.name,
        "licence of the data": f"{known.published.licence} ({known.published.page})"
        if known
        else "not known to bpfree",
        "a sample": samples,
        "classes": ", ".join(names) if names else str(preprocess.classes or ""),
        "weights": f"of the {run.weights} epoch",
        "licence of the weights": licence or "not stated",
    }


def _metrics(run: Run) -> dict[str, str]:
    """Return the test metrics by name, as text; none if there was no test split."""
    test = run.result.get("test") or {}
    return {f"test {name}": f"{test[name]:.{_DIGITS}f}" for name in _METRICS if name in test}


def _locality(locality: Locality) -> dict[str, str]:
    return {
        "an objective is differentiated through": _THROUGH[locality.through],
        "a part waits for later parts": "yes" if locality.waits else "no",
        "the way back reads of the forward weights": _READS[locality.transports],
        "activations in memory grow with depth": "yes" if locality.memory == "grows" else "no",
    }


def _cost(result: Mapping[str, Any]) -> dict[str, str]:
    """Return what the training took, as result.json states it."""
    memory, energy = result.get("step_memory_bytes"), result.get("energy_joules")
    queries = result.get("queries")
    device = f"{result.get('device', 'an unknown device')} in {result.get('precision', 'an unknown precision')}"
    return {
        "time": f"{result['wall_seconds']:.1f} s on {device}",
        "epochs": str(result.get("epochs", "")),
        "forward passes of a batch": "" if queries is None else f"{queries:,.0f}",
        "memory of a step": "" if memory is None else f"{memory / 1e6:.1f} MB",
        "energy": "" if energy is None else f"{energy:,.0f} J",
        "parameters of the net": f"{result.get('parameters', 0):,}",
        "parameters of the rule": f"{result.get('rule_parameters', 0):,}",
    }


def _use(run: Run, name: str) -> str:
    objects = [part for part in ("net", "rule") if part in run.from_python]
    given = "".join(f", {part}={part}" for part in objects)
    needed = f" Its {' and '.join(objects)} came from Python: give the same here." if objects else ""
    answer = "predict" if run.task.classes is None else "predict_proba"
    lines = (
        "from bpfree import hub  # pip install 'bpfree[hub]'",
        "",
        f"run = hub.load({name!r}{given})",
        f"run.{answer}(x)  # raw samples [N, ...]",
        "net = run.as_module()  # one nn.Module from raw samples to the same numbers",
    )
    code = "\n".join(("```python", *lines, "```"))
    return (
        f"{code}\n\nLoading executes nothing of this repository.{needed} `config.yaml` holds every option of the "
        "training."
    )


def _table(rows: Mapping[str, str]) -> str:
    """Return rows as a table of Markdown, without the empty ones."""
    lines = [f"| {_cell(name)} | {_cell(value)} |" for name, value in rows.items() if value]
    return "\n".join(["| | |", "|---|---|", *lines])


def _cell(text: str) -> str:
    # Names of classes may be anything, and a bar or a new line would end the cell.
    return " ".join(text.split()).replace("|", "\\|")


def _metadata(run: Run, name: str, licence: str | None) -> dict[str, Any]:
    """Return the metadata by which the Hub sorts models and shows their metrics."""
    test = run.result.get("test") or {}
    kind = _pipeline(run)
    data = run.config.data.name
    metrics = [{"type": each, "value": round(test[each], _DIGITS)} for each in _METRICS if each in test]
    index = {
        "name": name.rpartition("/")[2],
        "results": [
            {
                "task": {"type": kind or "other"},
                "dataset": {"type": data, "name": data},
                "metrics": metrics,
            }
        ],
    }
    return {
        "library_name": "bpfree",
        **({"license": licence} if licence else {}),
        **({"pipeline_tag": kind} if kind else {}),
        "tags": ["bpfree", "backpropagation-free", rule_of(run)],
        **({"model-index": [index]} if metrics else {}),
    }


def _pipeline(run: Run) -> str | None:
    """Return the kind of task by the Hub's name; None if it has none that fits."""
    task, table = run.task.name, run.preprocess.columns is not None
    if task in ("classify", "regress") and table:
        return "tabular-classification" if task == "classify" else "tabular-regression"
    is_image = len(run.preprocess.shape) == 3 and run.preprocess.dtype == "uint8" and not run.preprocess.inputs
    return {"classify": "image-classification", "segment": "image-segmentation"}.get(task) if is_image else None
