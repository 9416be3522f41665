"""The tables of optimisers and learning-rate schedules, and functions that make one from a config."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, OneCycleLR

from bpfree.errors import UserError
from bpfree.spec import Spec, build, lookup, split_spec
from bpfree.training.uncompiled import Uncompiled, uncompiled

SGD, Adam, AdamW, NAdam, RAdam, RMSprop, Adagrad = (
    uncompiled(kind, __name__)
    for kind in (optim.SGD, optim.Adam, optim.AdamW, optim.NAdam, optim.RAdam, optim.RMSprop, optim.Adagrad)
)


class ClipUp(Uncompiled):
    """An optimiser whose steps have one length, with momentum and a limit of the velocity.

    A length is the Euclidean norm over all parameters of a group.

    Reference:
        Toklu, Liskowski, Srivastava 2020, "ClipUp: A Simple and Powerful Optimizer for Distribution-Based Policy
        Evolution", https://arxiv.org/abs/2008.02387, Algorithm 1.

    Args:
        params: parameters or groups.
        lr: length of a step before momentum is added.
        momentum: factor of the old velocity.
        max_speed: largest length of the velocity. Default: twice the learning rate, as published.
        normalize: True to give each step the length lr. False: lr times the length of the gradient.

    Raises:
        ValueError: lr, momentum or max_speed is below 0.

    Attributes:
        takes_tensor_rate: True: `lr` of a group may be a tensor on the device.
    """

    takes_tensor_rate = True

    def __init__(
        self,
        params: Any,
        lr: float = 0.01,
        *,
        momentum: float = 0.9,
        max_speed: float | None = None,
        normalize: bool = True,
    ) -> None:
        for name, value in (("lr", lr), ("momentum", momentum), ("max_speed", max_speed)):
            if value is not None and value < 0:
                raise ValueError(f"{name}: found {value}, allowed: 0 or more")
        super().__init__(params, {"lr": lr, "momentum": momentum, "max_speed": max_speed, "normalize": normalize})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move all parameters that have a gradient.

        Args:
            closure: not used; part of torch's interface.
        """
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            if not moved:
                continue
            length = _length([p.grad for p in moved if p.grad is not None]) if group["normalize"] else 1.0
            velocities: list[Tensor] = []
            for p in moved:
                state = self.state[p]
                if not state:
                    state["velocity"] = torch.zeros_like(p)
                velocities.append(state["velocity"].mul_(group["momentum"]).add_(p.grad * (group["lr"] / length)))
            limit = 2 * group["lr"] if group["max_speed"] is None else group["max_speed"]
            # A tensor, not a number: reading the length would make a GPU wait in each step.
            shorter = (limit / _length(velocities)).clamp_max(1)
            for p, velocity in zip(moved, velocities, strict=True):
                velocity.mul_(shorter)
                p.sub_(velocity)


def _length(tensors: list[Tensor]) -> Tensor:
    """Return the Euclidean norm of all tensors as one vector, 0-d. It is above 0, because it is a divisor."""
    length: Tensor = torch.stack([t.norm() for t in tensors]).norm().clamp_min(1e-30)
    return length


@torch.no_grad()
def _start_late(optimizer: optim.Optimizer, *_: object) -> None:
    """Let SGD move parameters that get their first gradient later than others, such as NoProp's with `order: random`.

    With momentum, torch's fused form raises a TypeError there.
    """
    for group in optimizer.param_groups:
        if group["fused"] and group["momentum"]:
            moved = [p for p in group["params"] if p.grad is not None]
            late = [p for p in moved if optimizer.state[p].get("momentum_buffer") is None]
            for p in late if len(late) < len(moved) else []:
                gradient = (-p.grad if group["maximize"] else p.grad) + group["weight_decay"] * p
                # So that the buffer becomes the gradient itself in this step, as in torch's other forms.
                optimizer.state[p]["momentum_buffer"] = gradient * (group["dampening"] / group["momentum"])


OPTIMIZERS: dict[str, type[optim.Optimizer]] = {
    "sgd": SGD,
    "adam": Adam,
    "adamw": AdamW,
    "nadam": NAdam,
    "radam": RAdam,
    "rmsprop": RMSprop,
    "adagrad": Adagrad,
    "clipup": ClipUp,
}


def make_optimizer(spec: Spec, groups: Sequence[dict[str, Any]]) -> optim.Optimizer:
    """Return an optimiser of OPTIMIZERS. It is fused where torch can do this and the spec does not choose otherwise.

    Args:
        spec: a name, or a name and options.
        groups: groups of parameters, in torch's form.

    Raises:
        UserError: an unknown name or option, or a value out of range.
    """
    name, options = split_spec(spec, "optimizer")
    # These options choose between implementations. torch refuses two of them together.
    chosen = {"fused", "foreach", "capturable", "differentiable"} & options.keys()
    # Which optimisers have a fused form depends on the version of torch.
    has_fused = "fused" in inspect.signature(lookup(OPTIMIZERS, name, "optimizer")).parameters
    parameters = [p for group in groups for p in group["params"]]
    fused_types = {"cpu", "cuda", "mps"}
    if options.get("capturable") and any(p.device.type == "cpu" for p in parameters):
        raise UserError("optimizer.capturable: found true, allowed on a GPU only. Leave it out")
    # Fused: one kernel for all parameters. On a GPU it saves launches, on a CPU passes over memory.
    able = has_fused and not chosen and all(p.device.type in fused_types for p in parameters)
    spec = {"name": name, **options, **({"fused": True} if able else {})}
    optimizer: optim.Optimizer = build(OPTIMIZERS, spec, groups, section="optimizer")
    if isinstance(optimizer, optim.SGD):
        optimizer.register_step_pre_hook(_start_late)
    return optimizer


def add_groups(optimizer: optim.Optimizer, groups: Sequence[dict[str, Any]], wanted: Sequence[nn.Parameter]) -> None:
    """Add parameters to an optimiser of the user's, unless it has them already.

    Args:
        optimizer: the optimiser, changed in place.
        groups: the rule's groups, with the options that some parameters need.
        wanted: the parameters to add; others of the groups are left out.

    Raises:
        UserError: the optimiser has a parameter already, but with other options than those of its group.
    """
    # By id: tensors compare element by element.
    present = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    missing = {id(p) for p in wanted} - present.keys()
    for group in groups:
        _refuse_other_options(group, present)
        if added := [p for p in group["params"] if id(p) in missing]:
            optimizer.add_param_group({**group, "params": added})


def _refuse_other_options(group: dict[str, Any], present: dict[int, dict[str, Any]]) -> None:
    """Raise UserError if the optimiser has a parameter of the group with other options; `present` is by id."""
    for name, value in group.items():
        others = [present[id(p)] for p in group["params"] if id(p) in present] if name != "params" else []
        for other in others:
            if other.get(name, value) != value:
                raise UserError(
                    f"optimizer: it has parameters with {name} {other[name]}, but the rule wants {name} {value} for "
                    "them. Make it with rule.optimizer_groups(net) in place of rule.parameters()"
                )


class _Untouched(LRScheduler):
    """A schedule that does not change the learning rate, even if the user changes it while training.

    torch's LambdaLR computes each rate from the one at the start, and would undo the user's changes.
    """

    def get_lr(self) -> list[float | Tensor]:
        return [group["lr"] for group in self.optimizer.param_groups]


def constant(optimizer: optim.Optimizer, total_steps: int | None = None) -> LRScheduler:
    """Leave the learning rate as it is, or as the user of the optimiser sets it.

    Args:
        optimizer: the optimiser.
        total_steps: not used.
    """
    return _Untouched(optimizer)


def cosine(optimizer: optim.Optimizer, total_steps: int, *, final: float = 0.0) -> LRScheduler:
    """Lower the learning rate along half a cosine.

    Args:
        optimizer: the optimiser. Its learning rate is the first one.
        total_steps: steps of the training.
        final: the learning rate after the last step.
    """
    return CosineAnnealingLR(optimizer, T_max=total_steps, eta_min=final)


def onecycle(
    optimizer: optim.Optimizer,
    total_steps: int,
    *,
    pct_start: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    cycle_momentum: bool = False,
) -> LRScheduler:
    """Raise the learning rate in the first part of the steps, then lower it to almost 0.

    Reference:
        Smith and Topin 2017, "Super-Convergence", https://arxiv.org/abs/1708.07120.

    Args:
        optimizer: the optimiser. Its learning rate is the highest one.
        total_steps: steps of the training.
        pct_start: share of the steps that raise it.
        div_factor: the highest rate, divided by the first.
        final_div_factor: the first rate, divided by the last.
        cycle_momentum: True to lower the momentum while the rate rises.
    """
    peaks = [group["lr"] for group in optimizer.param_groups]
    return OneCycleLR(
        optimizer,
        max_lr=peaks,
        total_steps=total_steps,
        pct_start=pct_start,
        div_factor=div_factor,
        final_div_factor=final_div_factor,
        cycle_momentum=cycle_momentum,
    )


def step(
    optimizer: optim.Optimizer,
    total_steps: int,
    *,
    milestones: Sequence[float] = (0.5, 0.75, 0.89, 0.94),
    gamma: float = 0.25,
) -> LRScheduler:
    """Multiply the learning rate by `gamma` at each milestone.

    Args:
        optimizer: the optimiser.
        total_steps: steps of the training.
        milestones: shares of the steps. The defaults are those of Nokland and Eidnes 2019,
            https://arxiv.org/abs/1901.06656.
        gamma: the factor.
    """
    return MultiStepLR(optimizer, [round(m * total_steps) for m in milestones], gamma)


SCHEDULES: dict[str, Callable[..., LRScheduler]] = {
    "constant": constant,
    "cosine": cosine,
    "onecycle": onecycle,
    "step": step,
}


def make_schedule(spec: Spec, optimizer: optim.Optimizer, total_steps: int | None) -> LRScheduler:
    """Return a schedule of SCHEDULES, which is stepped once per training step.

    Args:
        spec: a name, or a name and options. Its `total_steps` may be larger than those of the training, which then
            ends within the schedule.
        optimizer: the optimiser whose learning rate it sets.
        total_steps: steps of the training, for a spec without `total_steps`; None if unknown.

    Raises:
        UserError: an unknown name or option, or a schedule that must know the number of steps and does not.
    """
    name, options = split_spec(spec, "schedule")
    if total_steps is not None:
        options.setdefault("total_steps", total_steps)
    if name in SCHEDULES and name != "constant":
        _check_length(name, options.get("total_steps"), total_steps)
    schedule: LRScheduler = build(SCHEDULES, {"name": name, **options}, optimizer, section="schedule")
    return schedule


def _check_length(name: str, steps: Any, training: int | None) -> None:
    """Raise UserError if the schedule does not know its length, or is shorter than the training."""
    if steps is None:
        raise UserError(
            f"schedule.total_steps: missing; '{name}' must know how many steps the training takes. Use "
            f"{{'name': '{name}', 'total_steps': 1000}}"
        )
    # Past its end onecycle raises, and cosine would go up again.
    if training is not None and isinstance(steps, int) and steps < training:
        raise UserError(
            f"schedule.total_steps: found {steps}, allowed: at least {training}, the steps of the training. Leave it "
            "out, so that it is filled in"
        )
