"""bpfree trains neural networks without end-to-end backpropagation.

>>> import bpfree
>>> run = bpfree.fit("mlp", "digits", rule="mono_forward", epochs=1)
>>> int(run.predict(run.test.x[:1]).shape[0])
1
"""

import sys

# `python -m bpfree` puts the current folder first on the path, where a file `sklearn.py` would run in place of the
# library. The folder is removed before anything else is imported; `bpfree.spec` adds it at the end if a config names
# code of the user. A program that imports bpfree keeps its path.
_IS_MODULE = sys.argv[:1] == ["-m"] and any(word in ("bpfree", "-mbpfree") for word in sys.orig_argv[1:])
if _IS_MODULE and not sys.flags.safe_path:
    del sys.path[0]

from bpfree.screen import loading
from bpfree.training import allocator, threads

if _IS_MODULE or loading.is_script():
    allocator.restart_without_caches()
    threads.sleep_soon()
    loading.begin("torch")  # until `bpfree.cli.main` runs

import warnings
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from bpfree import data, mesh, nets, rules, tasks, trackers
from bpfree._version import __version__
from bpfree.api import fit, load, resume
from bpfree.errors import DivergedError, UserError
from bpfree.evolution import Evolution, Evolved, evolve
from bpfree.lab.certify import Certificate, certify
from bpfree.lab.tune import tune
from bpfree.local.cut import cut
from bpfree.local.rule import LocalRule
from bpfree.local.segments import owners
from bpfree.local.taps import taps
from bpfree.noise import Noise
from bpfree.population.rule import BlackBoxRule
from bpfree.rule import Rule
from bpfree.runs.run import Run
from bpfree.trackers import Measure, Tracker
from bpfree.training.precision import fast_float32
from bpfree.training.progress import EarlyStopping
from bpfree.training.trainer import Trainer
from bpfree.types import Batch, Scalars, Task

_MOVED = {  # modules that the documentation of earlier versions named
    "bpfree.config": "bpfree.runs.config",
    "bpfree.feedback": "bpfree.local.feedback",
    "bpfree.lab.html": "bpfree.lab.report.html",
    "bpfree.locality": "bpfree.rule",
    "bpfree.run": "bpfree.runs.run",
}


class _MovedModules(MetaPathFinder, Loader):
    """Import a module by its earlier name: a new module that gets its names from the present one, with a warning."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in _MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        present = _MOVED[module.__name__]
        warnings.warn(f"{module.__name__} is now {present}", DeprecationWarning, stacklevel=2)
        module.__getattr__ = lambda name: getattr(import_module(present), name)  # type: ignore[method-assign]


sys.meta_path.append(_MovedModules())  # at the end: modules that exist are found before

if TYPE_CHECKING:
    from bpfree.lab.compare.compare import Comparison, compare
    from bpfree.lab.report.report import report
else:
    # Imported when they are first used: they import matplotlib, which takes about half a second.
    _LAZY = {
        "Comparison": "bpfree.lab.compare",
        "compare": "bpfree.lab.compare",
        "report": "bpfree.lab.report.report",
    }

    def __getattr__(name):
        if name not in _LAZY:
            raise AttributeError(f"module 'bpfree' has no attribute '{name}'")
        globals()[name] = value = getattr(import_module(_LAZY[name]), name)
        return value

    def __dir__():
        return sorted({*globals(), *_LAZY})


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
    "mesh",
    "nets",
    "owners",
    "report",
    "resume",
    "rules",
    "taps",
    "tasks",
    "trackers",
    "tune",
]
