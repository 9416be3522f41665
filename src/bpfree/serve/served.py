"""A run that is served: the run itself, what is known about it, and the samples of its data that are at hand."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bpfree.api import load
from bpfree.data import Split
from bpfree.data.dataset import Dataset
from bpfree.data.files.download import offline
from bpfree.diffusion import DiffusionRule
from bpfree.errors import UserError
from bpfree.noise import Noise
from bpfree.runs.config import Config
from bpfree.runs.run import Run
from bpfree.serve import samples
from bpfree.serve.forms import Column, Input, RunFacts, TestSample
from bpfree.serve.found import Found
from bpfree.serve.looks import Looks
from bpfree.spec import split_spec

_KEPT = 1000  # training samples for probes, and test samples to try


class Shelf:
    """The data sets that are at hand: each is read once, however many runs were trained on it. Nothing is downloaded.

    Args:
        data_dir: the folder of the data sets; None for the default.
    """

    def __init__(self, data_dir: Path | None) -> None:
        self.data_dir = data_dir
        self._read: dict[str, Dataset | str] = {}

    def take(self, config: Config) -> Dataset | str:
        """Return the data set that a config names, or a sentence that says why it is not at hand.

        Args:
            config: the config of a run.
        """
        key = json.dumps(config.data.model_dump(mode="json"), sort_keys=True, default=str)
        if key not in self._read:
            try:
                with offline():
                    self._read[key] = config.data.load(self.data_dir)
            except (UserError, OSError, KeyError) as error:  # not downloaded, moved, or changed since the training
                self._read[key] = f"The data are not at hand: {' '.join(str(error).split())}"
        return self._read[key]


class Served:
    """A run of the service.

    Args:
        found: where the run is, and its name.
        run: the loaded run.
        data: the data set of the run, or a sentence that says why it is not at hand.

    Attributes:
        looks: looks inside the net.
        test: up to 1,000 test samples; None if they are not at hand.
        facts: what the run is.
        merges: True if requests may be computed in one batch. With noise in inference the answer would depend on the
            others.
    """

    def __init__(self, found: Found, run: Run, data: Dataset | str) -> None:
        self.id = found.id
        self.run = run
        known = None if isinstance(data, str) or run.preprocess.inputs else data
        self.looks = Looks(run, None if known is None else _some(known.train))
        self.test = None if known is None or known.test is None else _some(known.test)
        rule = run.trainer.rule
        self.merges = not (isinstance(rule, DiffusionRule) and rule.inference == "stochastic")
        self.facts = self._facts(found.shown, data if isinstance(data, str) else "")

    def _facts(self, shown: bool, why: str) -> RunFacts:
        run, result = self.run, self.run.result
        names = {part: _name(getattr(run.config, part), part) for part in ("rule", "net", "task")}
        metrics = {k: v for k, v in (result.get("test") or {}).items() if isinstance(v, int | float)}
        return RunFacts(
            id=self.id,
            **names,
            data=run.config.data.name,
            metrics=metrics,
            parameters=result.get("parameters"),
            classes=list(run.preprocess.class_texts),
            input=_input(run),
            inside=self.looks.kind,
            inside_why=self.looks.why,
            tests=0 if self.test is None else len(self.test.y),
            tests_why="" if self.test is not None else why or "The data set has no test split, or several inputs.",
            shown=shown,
        )

    def sample(self, index: int | None) -> TestSample:
        """Return a test sample.

        Args:
            index: its number, from 0; None for a random one.

        Raises:
            UserError: there are no test samples at hand, or not so many.
        """
        if self.test is None:
            raise UserError(f"sample: found no test samples. {self.facts.tests_why}")
        count = len(self.test.y)
        chosen = random.randrange(count) if index is None else index
        if not 0 <= chosen < count:
            raise UserError(f"index: found {index}, allowed: 0 to {count - 1}")
        sample, y = self.test.tensor[chosen].tolist(), self.test.y[chosen]
        if y.dim() == 0 and not y.is_floating_point() and self.facts.classes:
            return TestSample(index=chosen, label=self.facts.classes[int(y)], sample=sample)
        return TestSample(index=chosen, answer=y.tolist(), sample=sample)


def load_runs(
    found: Sequence[Found], data_dir: Path | None, *, trust: bool, on_skip: Callable[[str], object] = lambda _: None
) -> list[Served]:
    """Load runs with the data that are at hand. Of several runs, those that cannot be loaded are left out.

    Args:
        found: the runs.
        data_dir: the folder of the data sets; None for the default.
        trust: import what a run's config names as "module:Class".
        on_skip: called with a sentence for each run that is left out.

    Raises:
        UserError: no run can be loaded.
    """
    shelf, served = Shelf(data_dir), []
    for each in found:
        try:
            run = load(each.folder, trust=trust)
        except UserError as error:
            if len(found) == 1:
                raise
            on_skip(f"left out: {error}")
            continue
        data: Any = "The data came from Python and are not stored with the run."
        served.append(Served(each, run, data if "data" in run.from_python else shelf.take(run.config)))
    if not served:
        raise UserError("run: none of the runs can be loaded. The lines above say why")
    return served


def _some(split: Split) -> Split:
    """Return up to 1,000 samples of a split, chosen by a fixed key."""
    order = Noise(0).fold("serve").permutation(len(split.y))[:_KEPT]
    return split.take(order.sort().values)


def _name(spec: Any, section: str) -> str:
    """Return the name in a section of a config, or the class of an object from Python."""
    return split_spec(spec, section)[0] if isinstance(spec, str | dict) else type(spec).__name__


def _input(run: Run) -> Input:
    preprocess = run.preprocess
    is_image = len(preprocess.shape) == 3 and preprocess.shape[0] in (1, 3) and not preprocess.inputs
    low, high = samples.raw_range(preprocess)
    return Input(
        kind="table" if preprocess.columns else "image" if is_image else "numbers",
        shape=list(preprocess.shape),
        dtype=preprocess.dtype,
        low=low,
        high=high,
        draws=samples.draws(preprocess),
        files=samples.takes_files(preprocess),
        columns=None if preprocess.columns is None else _columns(run),
        inputs=[name for name, _ in preprocess.inputs] or None,
    )


def _columns(run: Run) -> list[Column]:
    """Return the columns of a table, with the mean of the training rows for numbers."""
    means: Tensor = torch.tensor(run.preprocess.mean)
    at, columns = 0, []
    for column in run.preprocess.columns or ():
        mean = float(means[at]) if column.values is None and len(means) > at else None
        values = None if column.values is None else list(column.values)
        columns.append(Column(name=column.name, values=values, mean=mean))
        at += 1 if column.values is None else len(column.values)
    return columns
