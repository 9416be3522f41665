"""A run from its folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from bpfree import checkpoint, folder
from bpfree.config import Config, DataConfig, apply_override, parse
from bpfree.data import Preprocess
from bpfree.errors import UserError
from bpfree.rule import Rule
from bpfree.run import Run, assemble
from bpfree.tasks import Loss


def load(
    path: str | Path,
    *,
    net: nn.Module | None = None,
    rule: Rule | None = None,
    loss: Loss | None = None,
    weights: Literal["last", "best"] | None = None,
    device: str = "auto",
    overrides: Sequence[str] = (),
) -> Run:
    """A run from its folder, ready to predict. No code of the folder is executed.

    Args:
        path: of the run folder.
        net, rule: needed if the run was trained with objects from Python.
        loss: likewise a loss of the user's own; needed for metrics alone, not to predict.
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
    this = assemble(config, preprocess, net, rule, loss or (_lost if "loss" in state["given"] else None))
    trainer = this.trainer
    trainer.total_steps = 1
    trainer.compute_as(state)
    trainer.bind(next(this.batches(preprocess.unlabelled(preprocess.blank(2))).epoch()))
    checkpoint.load_weights(trainer, chosen)
    trainer.progress.history = state["progress"]["history"]
    trainer.progress.tracked = state["progress"].get("tracked", [])
    this.result, this.weights, this.folder, this.given = result, weights, path, state["given"]
    return this


def _lost(out: Tensor, y: Tensor) -> Tensor:
    """Stand for a loss that only the caller can give."""
    raise UserError("loss: the run was trained with a function from Python. Give it: bpfree.load(folder, loss=...)")


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
        if name in Config.model_fields:
            setattr(config, name, DataConfig(**value) if name == "data" else value)
    return config
