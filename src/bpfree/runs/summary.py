"""Show a run to a person: as a few lines of text, or as a table in a notebook."""

from collections.abc import Mapping
from html import escape
from typing import Any

from bpfree._version import __version__
from bpfree.grad import trainable
from bpfree.runs.assemble import Setup
from bpfree.spec import split_spec

_SHOWN = ("accuracy", "rmse", "r2", "valid_time", "loss")  # metrics; the others are in `result`


def as_text(facts: Mapping[str, str]) -> str:
    """Return the facts of a run as lines of text.

    Args:
        facts: see `facts_of`; empty ones are left out.
    """
    return "\n".join(["Run", *(f"  {name:<8} {value}" for name, value in facts.items() if value)])


def as_html(facts: Mapping[str, str]) -> str:
    """Return the facts of a run as a small HTML table with escaped text.

    Args:
        facts: see `facts_of`; empty ones are left out.
    """
    rows = "".join(
        f'<tr><th style="text-align: left">{escape(name)}</th><td style="text-align: left">{escape(value)}</td></tr>'
        for name, value in facts.items()
        if value
    )
    return f"<table>{rows}</table>"


def facts_of(setup: Setup, epochs: int, result: Mapping[str, Any]) -> dict[str, str]:
    """Return what a reader of a run wants to know first: rule, net, data, training, metrics and cost.

    Args:
        setup: the parts of the training.
        epochs: the number of epochs that are over.
        result: as in result.json; empty if the training is not over.
    """
    config, trainer = setup.config, setup.trainer
    net = type(setup.net).__name__ if "net" in setup.from_python else split_spec(config.net, "net")[0]
    parameters = sum(p.numel() for p in trainable(setup.net))
    shape = ", ".join(map(str, setup.preprocess.shape))
    where = f"on {trainer.device} in {trainer.precision}, seed {config.train.seed}"
    test = result.get("test") or {}
    return {
        "rule": repr(trainer.rule),
        "net": f"{net}, {parameters:,} parameters",
        "task": repr(setup.task),
        "data": f"{config.data.name}, samples of shape [{shape}]",
        "training": f"{epochs} of {config.train.epochs} epochs {where}",
        "test": ", ".join(f"{name} {test[name]:.4f}" for name in _SHOWN if name in test),
        "cost": _cost(result),
    }


def _cost(result: Mapping[str, Any]) -> str:
    """Return seconds and memory of a finished training; "" before its end."""
    seconds, memory = result.get("wall_seconds"), result.get("step_memory_bytes")
    parts = [] if seconds is None else [f"{seconds:.1f} s"]
    return ", ".join(parts if memory is None else [*parts, f"{memory / 1e6:.1f} MB for a step"])


def origin(setup: Setup) -> dict[str, Any]:
    """Return where a trained net comes from, as plain values for the metadata of an exported file.

    Args:
        setup: the parts of the training.
    """
    config = setup.config
    names = setup.preprocess.class_names
    return {
        "bpfree": __version__,
        "rule": split_spec(config.rule, "rule")[0],
        "net": split_spec(config.net, "net")[0],
        "data": config.data.name,
        "task": setup.task.name,
        "classes": None if names is None else list(names),
    }
