"""Refuse arguments of a trainer that look right and are not, each with its cure."""

import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from bpfree.errors import UserError, shown
from bpfree.tasks import TASKS

_NEEDED = ("dim", "target", "loss", "metrics")


def check_task(task: object) -> None:
    """Raise UserError unless an object has what `bpfree.types.Task` needs.

    Args:
        task: what the user gave as the task.
    """
    if isinstance(task, str | dict):
        kinds = ", ".join(kind.__name__ for kind in TASKS.values())
        raise UserError(
            f"task: found {shown(task)}, allowed: an object that knows how many classes or values there are, such as "
            f"bpfree.tasks.Classify(10) for 10 classes. bpfree.tasks has {kinds}"
        )
    if isinstance(task, type):
        raise UserError(f"task: found the class {task.__name__}, allowed: an object of it, such as {task.__name__}(10)")
    missing = [name for name in _NEEDED if not hasattr(task, name)]
    if missing and callable(task):
        raise UserError(
            f"task: found the function {getattr(task, '__name__', type(task).__name__)}, allowed: a task. To train "
            "with a loss of your own: task = bpfree.tasks.Classify(10); task.use_loss(loss), where loss takes the "
            "outputs and the labels"
        )
    if missing:
        raise UserError(
            f"task: found {type(task).__name__} without {', '.join(missing)}, allowed: a task, such as "
            "bpfree.tasks.Classify(10), or an object with the attributes of bpfree.Task"
        )


def check_schedule(schedule: object) -> None:
    """Raise UserError for a scheduler of torch: it was made before the rule's parameters were in the optimiser.

    Args:
        schedule: what the user gave as the schedule.
    """
    if isinstance(schedule, LRScheduler | ReduceLROnPlateau):
        raise UserError(
            f"schedule: found a {type(schedule).__name__}, allowed: a name or a spec, such as "
            "{'name': 'cosine', 'total_steps': 500}. To use your scheduler, leave schedule out and call "
            "scheduler.step() after each trainer.step(batch)"
        )


def check_optimizer(optimizer: object) -> None:
    """Raise UserError for a class of optimisers in place of an object or a name.

    Args:
        optimizer: what the user gave as the optimiser.
    """
    if isinstance(optimizer, type) and issubclass(optimizer, torch.optim.Optimizer):
        raise UserError(
            f"optimizer: found the class {optimizer.__name__}, allowed: a name, a spec such as "
            "{'name': 'adam', 'lr': 0.001}, or an optimiser made for the net's parameters"
        )
