"""Names of all things that a config can name, with descriptions and options, for `bpfree list`, `show` and the docs."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel

from bpfree.data import DATASETS, Augment
from bpfree.data.subset import Skew
from bpfree.nets import NETS
from bpfree.rule import Rule
from bpfree.rules import RULES
from bpfree.runs.config import EarlyStoppingConfig, MeshConfig, TrainConfig
from bpfree.runs.data_config import AugmentConfig, DataConfig, SkewConfig
from bpfree.spec import Option, fields_of, options_of, summary
from bpfree.tasks import TASKS
from bpfree.trackers import TRACKERS
from bpfree.training.mesh import MeshSpec
from bpfree.training.optim import OPTIMIZERS, SCHEDULES
from bpfree.training.progress import EarlyStopping

_SWITCHES = {"capturable", "differentiable", "foreach", "fused", "maximize"}


class Kind(NamedTuple):
    """A kind of things that a config can name, such as the rules.

    Attributes:
        name: its name in the singular, such as "rule".
        plural: its name for `bpfree list`.
        section: the section of a config that names it.
        table: the constructors by name.
        given: the number of leading arguments that the library supplies to a constructor.
    """

    name: str
    plural: str
    section: str
    table: Mapping[str, Any]
    given: int


KINDS = (
    Kind("rule", "rules", "rule", RULES, 0),
    Kind("net", "nets", "net", NETS, 2),
    Kind("task", "tasks", "task", TASKS, 1),
    Kind("data set", "datasets", "data", DATASETS, 1),
    Kind("tracker", "trackers", "trackers", TRACKERS, 0),
    Kind("optimizer", "optimizers", "optimizer", OPTIMIZERS, 1),
    Kind("schedule", "schedules", "schedule", SCHEDULES, 1),
)

# By its name, each section whose keys are not options of a constructor, and the classes that explain its keys.
SECTIONS: dict[str, tuple[type[BaseModel], tuple[type, ...]]] = {
    "train": (TrainConfig, ()),
    "train.early_stopping": (EarlyStoppingConfig, (EarlyStopping,)),
    "train.mesh": (MeshConfig, (MeshSpec,)),
    "data": (DataConfig, ()),
    "data.augment": (AugmentConfig, (Augment,)),
    "data.skew": (SkewConfig, (Skew,)),
}


def options(kind: Kind, name: str) -> list[Option]:
    """Return the options of something that a config can name.

    Args:
        kind: what it is.
        name: its name in the table of the kind.
    """
    thing = kind.table[name]
    # A task is made for a data set by `of`. Two defaults are chosen by the library.
    found = options_of(thing.of if kind.name == "task" else thing, kind.given)
    if is_of_torch(thing):
        return [_shorter(option) for option in found if option.name not in _SWITCHES]
    defaults = {"taps": "auto", "total_steps": "those of the training"}
    return [
        option._replace(default=defaults.get(option.name, option.default))
        for option in found
        if option.meaning != "not used."
    ]


def is_of_torch(thing: Callable[..., Any]) -> bool:
    """Return True for one of torch's optimisers, whose options torch's documentation explains."""
    return isinstance(thing, type) and thing.__init__.__module__.startswith("torch.")  # type: ignore[misc]


def _shorter(option: Option) -> Option:
    """Return an option of torch with the first sentence of its meaning; torch's documentation has the rest."""
    return option._replace(meaning=f"{option.meaning.partition('. ')[0].rstrip('.')}.")


def keys(section: str) -> list[Option]:
    """Return the keys of one of the `SECTIONS`.

    Args:
        section: its name, such as "train".
    """
    model, explained_by = SECTIONS[section]
    return fields_of(model, *explained_by)


def describe_in_a_line(thing: Callable[..., Any]) -> str:
    """Return the first paragraph of a docstring without the "Return" of a function.

    Args:
        thing: a class or a function.
    """
    text = summary(thing).removeprefix("Return ")
    return text[:1].upper() + text[1:]


def tasks_of(rule: type[Rule]) -> str:
    """Return the names of the tasks that a rule can train for.

    Args:
        rule: the class of the rule.
    """
    return "any task" if set(rule.tasks) == set(TASKS) else ", ".join(rule.tasks)
