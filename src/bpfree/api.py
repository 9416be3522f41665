"""The Python door: fit, resume, load."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from bpfree import checkpoint, folder
from bpfree.config import Config, DataConfig, TrainConfig, apply_override, parse
from bpfree.data import Preprocess, Split, from_python
from bpfree.errors import UserError, unknown
from bpfree.rule import Rule
from bpfree.run import Run, assemble, train
from bpfree.spec import Spec
from bpfree.trackers import Tracker


def fit(
    net: nn.Module | Spec,
    data: Any,
    rule: Rule | Spec = "dfa",
    *,
    epochs: int = 10,
    optimizer: Spec = "adam",
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    test: Any = None,
    trackers: Sequence[Spec | Tracker] = (),
    **options: Any,
) -> Run:
    """Train a net without end-to-end backpropagation.

    Args:
        net: any `nn.Module`, or the name or spec of one in `bpfree.nets.NETS`.
        data: name of a data set, a pair (samples, labels) of arrays or tensors, or a torch Dataset; with
            `task="reconstruct"` samples alone will do.
        rule: a name or spec from `bpfree.rules.RULES`, or a Rule.
        epochs: passes over the training data.
        optimizer: a name or spec from `bpfree.optim.OPTIMIZERS`.
        seed: of everything random.
        out: run folder to write; None for none.
        resume: go on with the run in `out` if one was begun there by the same call.
        test: a pair or Dataset for the final evaluation; a named data set brings its own.
        trackers: what to watch: names or specs from `bpfree.trackers.TRACKERS`, or Trackers.
        options: any other key of the config's `data` and `train` sections (batch_size, validation, shift, flip;
            precision, update, device, clip, freeze,
            early_stopping), the sections `schedule` and `task`, and `classes`.

    Returns:
        The finished run.

    Raises:
        UserError: anything that cannot work, said in one line.

    Example:
        >>> run = fit("mlp", "digits", rule="dfa", epochs=2)
        >>> run.result["test"]["accuracy"] > 0.5
        True
    """
    classes = options.pop("classes", None)
    values: dict[str, Any] = {
        "data": {"name": data} if isinstance(data, str) else {},
        "net": "mlp" if isinstance(net, nn.Module) else net,
        "rule": "backprop" if isinstance(rule, nn.Module) else rule,
        "optimizer": optimizer,
        "train": {"epochs": epochs, "seed": seed},
        "trackers": [tracker for tracker in trackers if not isinstance(tracker, Tracker)],
    }
    for key, value in options.items():
        if key in ("schedule", "task"):
            values[key] = value
        elif key in DataConfig.model_fields or key in TrainConfig.model_fields:
            values["data" if key in DataConfig.model_fields else "train"][key] = value
        else:
            known = {*DataConfig.model_fields, *TrainConfig.model_fields, "schedule", "task", "classes"}
            raise unknown("argument", key, known - {"name"})
    config = parse(values, "fit")
    unlabelled = config.task["name"] == "reconstruct"
    dataset = None if isinstance(data, str) else from_python(data, test, classes, without_labels=unlabelled)
    for section, value in (("net", net), ("rule", rule)):
        if isinstance(value, nn.Module):  # named for the reader; `given` says that no config can rebuild it
            setattr(config, section, {"name": f"{type(value).__module__}:{type(value).__qualname__}"})
    if dataset is not None:
        config.data.name = dataset.name
    return train(
        config,
        net=net if isinstance(net, nn.Module) else None,
        rule=rule if isinstance(rule, Rule) else None,
        dataset=dataset,
        trackers=[tracker for tracker in trackers if isinstance(tracker, Tracker)],
        out=None if out is None else Path(out),
        resume=resume and out is not None and (Path(out) / folder.CONFIG).exists(),
    )


def resume(path: str | Path, data_dir: str | Path | None = None) -> Run:
    """Go on with a run that was interrupted; one that is over is loaded and returned as it is.

    The weights come out bit for bit as if it had never stopped.

    Raises:
        UserError: the folder is no run, has no checkpoint, or its net came from Python.
    """
    path = Path(path)
    values = folder.read_config(path)
    if given := checkpoint.read_state(path / folder.LAST)["given"]:
        raise UserError(
            f"{path}: its {' and '.join(given)} came from Python as objects, so no config can rebuild the run. Repeat "
            "the call there: bpfree.fit(..., resume=True)"
        )
    config = parse(values, str(path / folder.CONFIG))
    if data_dir is not None:
        config.data.dir = str(data_dir)
    if folder.read_result(path) is not None:
        return load(path)
    return train(config, out=path, resume=True)


def load(
    path: str | Path,
    *,
    net: nn.Module | None = None,
    rule: Rule | None = None,
    weights: Literal["last", "best"] | None = None,
    device: str = "auto",
    overrides: Sequence[str] = (),
) -> Run:
    """A run from its folder, ready to predict. No code of the folder is executed.

    Args:
        path: of the run folder.
        net, rule: needed if the run was trained with objects from Python.
        weights: "last" or "best"; default: those that result.json was made with.
        device: where to.
        overrides: options of the rule that are to be others than in training, such as "rule.steps=50".

    Raises:
        UserError: the folder is no run or is damaged, an object is missing, or an option does not fit the weights.
    """
    path = Path(path)
    values = folder.read_config(path)
    for override in overrides:
        if not override.startswith("rule.") or override.startswith("rule.name="):
            raise UserError(
                f"override: found '{override}', allowed for a trained run: options of its rule (rule.x=...)"
            )
        apply_override(values, override)
    result = folder.read_result(path) or {}
    weights = weights or result.get("weights", "last")
    if weights not in ("last", "best"):
        raise UserError(f"weights: found {weights!r}, allowed: last or best")
    chosen = path / f"{weights}.ckpt"
    state = checkpoint.read_state(chosen)
    config = _rebuildable(values, state["given"], path, {"net": net, "rule": rule})
    config.train.device = device
    preprocess = Preprocess.load(state["preprocess"])
    this = assemble(config, preprocess, net, rule)
    trainer = this.trainer
    trainer.total_steps = 1
    blank = Split(preprocess.blank(2), torch.zeros(2, dtype=torch.int64))
    trainer.bind(next(this.batches(blank).epoch()))
    checkpoint.load_weights(trainer, chosen)
    trainer.progress.history = state["progress"]["history"]
    trainer.progress.tracked = state["progress"].get("tracked", [])
    this.result, this.weights, this.folder, this.given = result, weights, path, state["given"]
    return this


def _rebuildable(values: dict[str, Any], given: list[str], path: Path, objects: dict[str, Any]) -> Config:
    """The config of a run, where objects stand in for what came from Python."""
    for name in given:
        if name in objects and objects[name] is None:
            raise UserError(
                f"{path}: its {name} was an object from Python, so no config can rebuild it. Load it there with "
                f"bpfree.load(folder, {name}=...)"
            )
    described = {name: values.pop(name, None) for name in given}
    config = parse(values, str(path / folder.CONFIG))
    for name, value in described.items():
        setattr(config, name, DataConfig(**value) if name == "data" else value)
    return config
