"""Load a run from its folder. Nothing in the folder is executed, whoever made it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from bpfree.disk.paths import user_path
from bpfree.errors import UserError, check_choice
from bpfree.rule import Rule
from bpfree.runs import checkpoint, folder
from bpfree.runs.assemble import Setup, assemble
from bpfree.runs.config import Config, parse, parse_section
from bpfree.runs.config_file import apply_override
from bpfree.runs.run import Run
from bpfree.runs.saved import State
from bpfree.spec import without_foreign_code
from bpfree.tasks import Loss
from bpfree.training.mesh import MeshSpec


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
    """Load a run from its folder, ready to predict. Nothing in the folder is executed, whoever made it.

    Args:
        path: the run folder.
        net: used instead of the net that the run's config names. Needed if the net was a Python object in training, or
            is code of the user ("my_package.nets:Net").
        rule: used instead of the rule that the run's config names; needed in the same cases.
        loss: the loss function that training used instead of the task's; needed for metrics alone, not to predict.
        weights: "last" or "best"; default: the weights that result.json was made with.
        device: name of the device to put the run on; "auto" takes a GPU if there is one.
        overrides: options of the rule that shall differ from training, such as "rule.steps=50".
        trust: import what the run's config names as "module:Class", which executes that module.

    Returns:
        The run. It has no test split, because no data are read.

    Raises:
        UserError: the folder does not hold a run or is damaged, an object is missing, an option does not fit the
            weights, or the config names code and `trust` is False.
    """
    path = user_path(path, "run")
    # Every file is checked before anything is built from it, so that an error names the file.
    values = _overridden(folder.read_config(path), overrides)
    result = folder.read_result(path) or {}
    weights = weights or result.get("weights", "last")
    check_choice("weights", weights, ("last", "best"))
    chosen = path / f"{weights}.ckpt"
    state = checkpoint.read_state(chosen)
    with without_foreign_code(path / folder.CONFIG, trust=trust):
        config = _rebuildable(values, state.from_python, path, {"net": net, "rule": rule})
        config.train.device = device
        # Predictions need no loss, so a missing one becomes an error only where it is called.
        setup = _bound(config, state, net, rule, loss or (_missing_loss if "loss" in state.from_python else None))
    checkpoint.load_weights(setup.trainer, chosen)
    return Run(setup, state.progress.load(), result=result, weights=weights, folder=path)


def _overridden(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply overrides to a run's config; only options of the rule may change, since the weights fit the rest."""
    for override in overrides:
        if not override.startswith("rule.") or override.startswith("rule.name="):
            raise UserError(
                f"override: found '{override}', allowed for a trained run: options of its rule (rule.x=...)"
            )
        apply_override(values, override)
    return values


def _bound(config: Config, state: State, net: nn.Module | None, rule: Rule | None, loss: Loss | None) -> Setup:
    """Build the parts of a run and bind its rule, so that all weights that a checkpoint holds exist."""
    # Each process loads by itself: of several, a user may let only one predict.
    alone = MeshSpec("none")
    setup = assemble(config, state.preprocess, net, rule, loss, state.from_python, mesh=alone)
    setup.trainer.compute_as(state.precision, state.channels_last)
    # The data are not read: samples of zeros have the right shape, which is all that binding needs.
    blank = state.preprocess.unlabelled(state.preprocess.blank(2))
    setup.trainer.bind(next(setup.batches(blank).epoch()), total_steps=1)
    return setup


def _missing_loss(out: Tensor, y: Tensor) -> Tensor:
    """Raise UserError in place of a loss function that only the caller can give."""
    raise UserError("loss: the run was trained with a function from Python. Give it: bpfree.load(folder, loss=...)")


def _rebuildable(values: dict[str, Any], from_python: Sequence[str], path: Path, objects: dict[str, Any]) -> Config:
    """Return the config of a run in which objects stand in for parts that were Python objects in training.

    Args:
        values: sections of config.yaml; those of objects are removed.
        from_python: names of the parts that were Python objects in training.
        path: the run folder, for errors.
        objects: by name, the objects that the caller gives now, or None.
    """
    for name in from_python:
        if name in objects and objects[name] is None:
            raise UserError(
                f"{path}: its {name} was an object from Python, so no config can rebuild it. Load it there with "
                f"bpfree.load(folder, {name}=...)"
            )
    passed = [name for name, value in objects.items() if value is not None]
    where = str(path / folder.CONFIG)
    # These sections only describe an object, often by a class that cannot be imported here, so `parse` must not see
    # them: it would refuse the name.
    described = {name: values.pop(name) for name in {*from_python, *passed} if name in values}
    config = parse(values, where)
    for name, value in described.items():
        if name in Config.model_fields:
            setattr(config, name, parse_section(name, value, where))
    return config
