"""bpfree trains neural networks without end-to-end backpropagation.

>>> import bpfree
>>> run = bpfree.fit("mlp", "digits", rule="mono_forward", epochs=1)
>>> int(run.predict(run.test.x[:1]).shape[0])
1
"""

import bpfree._search_path  # noqa: F401, I001 - before anything else is imported
from importlib import import_module
from typing import TYPE_CHECKING

from bpfree import data, nets, rules, tasks, trackers
from bpfree._version import __version__
from bpfree.api import fit, load
from bpfree.cut import cut, owners
from bpfree.errors import DivergedError, UserError
from bpfree.evolution import Evolution, Evolved, evolve
from bpfree.lab.certify import Certificate, certify
from bpfree.lab.tune import tune
from bpfree.matmul import fast_float32
from bpfree.noise import Noise
from bpfree.population.rule import BlackBoxRule
from bpfree.rule import LocalRule, Rule
from bpfree.run import Run
from bpfree.state import EarlyStopping
from bpfree.taps import taps
from bpfree.trackers import Measure, Tracker
from bpfree.trainer import Trainer
from bpfree.types import Batch, Scalars, Task

if TYPE_CHECKING:
    from bpfree.lab.compare.compare import Comparison, compare
    from bpfree.lab.report import report
else:
    # When first asked for: they draw, and what they draw with takes a while to import.
    _WHEN_ASKED = {"Comparison": "bpfree.lab.compare", "compare": "bpfree.lab.compare", "report": "bpfree.lab.report"}

    def __getattr__(name):
        if name not in _WHEN_ASKED:
            raise AttributeError(f"module 'bpfree' has no attribute '{name}'")
        globals()[name] = found = getattr(import_module(_WHEN_ASKED[name]), name)
        return found

    def __dir__():
        return sorted({*globals(), *_WHEN_ASKED})


__all__ = [
    "Batch",
    "BlackBoxRule",
    "Certificate",
    "Comparison",
    "DivergedError",
    "EarlyStopping",
    "Evolution",
    "Evolved",
    "LocalRule",
    "Measure",
    "Noise",
    "Rule",
    "Run",
    "Scalars",
    "Task",
    "Tracker",
    "Trainer",
    "UserError",
    "__version__",
    "certify",
    "compare",
    "cut",
    "data",
    "evolve",
    "fast_float32",
    "fit",
    "load",
    "nets",
    "owners",
    "report",
    "rules",
    "taps",
    "tasks",
    "trackers",
    "tune",
]
