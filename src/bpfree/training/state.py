"""The state of a trainer as one mapping of plain values and tensors, for users who save it by their own means.

Run folders have checkpoints of another form, in `bpfree.runs.checkpoint`, because a stranger may have written them.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from bpfree.errors import UserError, shown
from bpfree.noise import Noise
from bpfree.training.progress import Progress
from bpfree.training.stepper import Stepper

VERSION = 1
KEYS = ("version", "net", "rule", "optimizer", "schedule", "progress", "seed", "precision", "channels_last")


def state_of(trainer: Stepper) -> dict[str, Any]:
    """Return the state of a bound trainer; see `bpfree.Trainer.state_dict`."""
    if trainer.mesh.apart is not None:
        raise UserError(
            "state_dict: with mesh blocks each process has the state of its parts only. Train with a run folder "
            "(out=...), whose checkpoints hold all parts"
        )
    return {
        "version": VERSION,
        "net": trainer.net.state_dict(),
        "rule": trainer.rule.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "schedule": trainer.schedule.state_dict(),
        "progress": asdict(trainer.progress),
        "seed": trainer.noise.seed,
        "precision": trainer.precision,
        "channels_last": trainer.channels_last,
    }


def load_state(trainer: Stepper, state: Mapping[str, Any]) -> None:
    """Load a state into a bound trainer; see `bpfree.Trainer.load_state_dict`."""
    optimizer = trainer.optimizer  # first, because it raises the error of a trainer that is not bound
    if not isinstance(state, Mapping) or sorted(state) != sorted(KEYS) or state["version"] != VERSION:
        keys = ", ".join(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
        raise UserError(f"state: found {shown(keys)}, allowed: what trainer.state_dict() returned ({', '.join(KEYS)})")
    try:
        # The weights come first: a net or rule of another shape is refused before anything of the optimiser changes.
        trainer.net.load_state_dict(state["net"])
        trainer.rule.load_state_dict(state["rule"])
        _load_optimizer(optimizer, state["optimizer"])
        trainer.schedule.load_state_dict(state["schedule"])
        progress = Progress(**state["progress"])
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"state: it does not fit this trainer ({' '.join(str(error).split())[:300]}), allowed: a state of the "
            "same net, rule, optimiser and schedule"
        ) from error
    trainer.noise = Noise(state["seed"])
    trainer.compute_as(state["precision"], state["channels_last"])
    trainer.continue_from(progress)


def _load_optimizer(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Load the state of the optimiser. torch does not look at shapes, and a fused step would read beyond a tensor."""
    for saved, group in zip(state["param_groups"], optimizer.param_groups, strict=True):
        if saved.keys() != group.keys():
            raise UserError(
                f"state: the optimiser has the options {', '.join(sorted(saved))}, allowed: those of "
                f"{type(optimizer).__name__}"
            )
        for index, parameter in zip(saved["params"], group["params"], strict=True):
            for name, value in state["state"].get(index, {}).items():
                if isinstance(value, Tensor) and value.dim() and value.shape != parameter.shape:
                    raise UserError(
                        f"state: {name} of parameter {index} has the shape {list(value.shape)}, allowed: "
                        f"{list(parameter.shape)}"
                    )
    optimizer.load_state_dict(dict(state))
