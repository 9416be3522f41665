"""A run from its folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from bpfree.disk.paths import user_path
from bpfree.errors import UserError, check_choice
from bpfree.rule import Rule
from bpfree.runs import checkpoint, folder
from bpfree.runs.config import Config, parse, parse_section
from bpfree.runs.config_file import apply_override
from bpfree.runs.run import Run, assemble
from bpfree.spec import without_foreign_code
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
    trust: bool = False,
) -> Run:
    """A run from its folder, ready to predict. Nothing of the folder is executed, whoever made it.

    Args:
        path: of the run folder.
        net, rule: in place of what the run's config names; needed if they were objects from Python in training, or are
            code of the user's own ("my_package.nets:Net").
        loss: likewise a loss of the user's own; needed for metrics alone, not to predict.
        weights: "last" or "best"; default: those that result.json was made with.
        device: where to.
        overrides: options of the rule that are to be others than in training, such as "rule.steps=50".
        trust: import what the run's config names as "module:Class", which executes that module.

    Raises:
        UserError: the folder is no run or is damaged, an object is missing, an option does not fit the weights, or the
            config names code and `trust` is False.
    """
    path = user_path(path, "run")
    values = folder.read_config(path)
    for override in overrides:
        if not override.startswith("rule.") or override.startswith("rule.name="):
            raise UserError(
                f"override: found '{override}', allowed for a trained run: options of its rule (rule.x=...)"
            )
        apply_override(values, override)
    result = folder.read_result(path) or {}
    weights = weights or result.get("weights", "last")
    check_choice("weights", weights, ("last", "best"))
    chosen = path / f"{weights}.ckpt"
    state = checkpoint.read_state(chosen)
    preprocess = state.preprocess
    with without_foreign_code(path / folder.CONFIG, trust=trust):
        config = _rebuildable(values, state.given, path, {"net": net, "rule": rule})
        config.train.device = device
        this = assemble(config, preprocess, net, rule, loss or (_lost if "loss" in state.given else None))
        trainer = this.trainer
        trainer.total_steps = 1
        trainer.compute_as(state.precision, state.channels_last)
        trainer.bind(next(this.batches(preprocess.unlabelled(preprocess.blank(2))).epoch()))
    checkpoint.load_weights(trainer, chosen)
    progress = state.progress.load()
    trainer.progress.history, trainer.progress.tracked = progress.history, progress.tracked
    this.result, this.weights, this.folder, this.given = result, weights, path, list(state.given)
    return this


def _lost(out: Tensor, y: Tensor) -> Tensor:
    """Stand for a loss that only the caller can give."""
    raise UserError("loss: the run was trained with a function from Python. Give it: bpfree.load(folder, loss=...)")


def _rebuildable(values: dict[str, Any], given: Sequence[str], path: Path, objects: dict[str, Any]) -> Config:
    """The config of a run, where objects stand in for what came from Python."""
    for name in given:
        if name in objects and objects[name] is None:
            raise UserError(
                f"{path}: its {name} was an object from Python, so no config can rebuild it. Load it there with "
                f"bpfree.load(folder, {name}=...)"
            )
    passed = [name for name, value in objects.items() if value is not None]
    where = str(path / folder.CONFIG)
    described = {name: values.pop(name) for name in {*given, *passed} if name in values}
    config = parse(values, where)
    for name, value in described.items():
        if name in Config.model_fields:
            setattr(config, name, parse_section(name, value, where))
    return config
