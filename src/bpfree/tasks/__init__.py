"""What a net is trained for. `TASKS` is the table; `TASKS[name].of(data)` makes a task for a data set."""

from bpfree.tasks.classify import Classify
from bpfree.tasks.reconstruct import Reconstruct

TASKS: dict[str, type[Classify] | type[Reconstruct]] = {"classify": Classify, "reconstruct": Reconstruct}

__all__ = ["TASKS", "Classify", "Reconstruct"]
