"""What a net is trained for. `TASKS` is the table; `TASKS[name].of(data)` makes a task for a data set."""

from bpfree.tasks.base import DataTask
from bpfree.tasks.classify import Classify
from bpfree.tasks.reconstruct import Reconstruct
from bpfree.tasks.regress import Regress
from bpfree.tasks.sequence import Sequence

TASKS: dict[str, type[Classify] | type[Reconstruct] | type[Regress] | type[Sequence]] = {
    "classify": Classify,
    "reconstruct": Reconstruct,
    "regress": Regress,
    "sequence": Sequence,
}

__all__ = ["TASKS", "Classify", "DataTask", "Reconstruct", "Regress", "Sequence"]
