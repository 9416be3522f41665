"""What a net is trained for. `TASKS` is the table."""

from bpfree.tasks.classify import Classify

TASKS: dict[str, type[Classify]] = {"classify": Classify}

__all__ = ["TASKS", "Classify"]
