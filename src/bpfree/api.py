"""Train, resume and load from Python: `bpfree.fit`, `resume` and `bpfree.load`."""

import inspect
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Unpack

from torch import nn

from bpfree.disk.paths import user_path
from bpfree.errors import UserError
from bpfree.rule import Rule
from bpfree.runs import checkpoint, folder
from bpfree.runs.config import parse
from bpfree.runs.fit_options import FitOptions
from bpfree.runs.from_python import describe
from bpfree.runs.load import load
from bpfree.runs.run import Run
from bpfree.runs.train import train
from bpfree.spec import Spec, without_foreign_code
from bpfree.tasks import Loss
from bpfree.trackers import Tracker, refuse_others
from bpfree.training.together import agreed, world_of

__all__ = ["fit", "load", "resume"]


def fit(
    net: nn.Module | Spec,
    data: Any,
    rule: Rule | Spec = "dfa",
    *,
    epochs: int = 10,
    optimizer: Spec = "adam",
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    test: Any = None,
    trackers: Sequence[Spec | Tracker] = (),
    loss: Loss | str | None = None,
    verbose: bool | None = None,
    **options: Unpack[FitOptions],
) -> Run:
    """Train a net without end-to-end backpropagation.

    Args:
        net: any `nn.Module`, or the name or spec of a net in `bpfree.nets.NETS`.
        data: name or spec of a data set, such as `{"name": "folder", "path": "flowers"}`, a pair (samples, labels) of
            arrays or tensors, a torch Dataset, or a DataLoader, which is read once. For several inputs, samples are
            a tuple or a dict of arrays; see docs/own_data.md. Labels depend on the task: a class for each sample,
            [N]; with `task="multilabel"` 0 or 1 for each of C labels, [N, C]; with "segment" a class for each pixel,
            [N, H, W]; with "language" the next token for each, [N, T]; with "regress" and "sequence" numbers. With
            "reconstruct", samples without labels are enough.
        rule: a name or spec from `bpfree.rules.RULES`, or a Rule.
        epochs: passes over the training data.
        optimizer: a name or spec from `bpfree.training.optim.OPTIMIZERS`.
        seed: of everything random.
        out: run folder to write; None trains in memory.
        resume: continue the run in `out` if the same call began one there.
        test: a pair or Dataset for the final evaluation; a named data set has its own.
        trackers: measure while training: names or specs from `bpfree.trackers.TRACKERS`, or Trackers.
        loss: a function (outputs, labels) -> loss, 0-d and differentiable, used instead of the task's loss. Outputs
            [B, D] are those of the net, or of a head of the rule. Labels are those of the task (class indices [B], or
            with mixup shares [B, C]). Or the name of a loss of the task: with task="regress" mse, mae or huber.
        verbose: True: show a progress bar at a terminal or in a notebook, and elsewhere a line for each epoch on
            standard error. False: show nothing. None: show a bar at a terminal or in a notebook, and elsewhere only
            what bpfree chose by itself.
        options: any other key of the config's `data` and `train` sections (batch_size, validation, fraction, skew,
            label_noise, augment; precision, update, graph, deterministic, mesh, device, clip, start_from, freeze,
            early_stopping), the sections `schedule` and `task`, and `classes`: how many there are in arrays, or a list
            of those to keep of any data. `augment` is a section, a function of a batch of images [B, C, H, W], or a
            list of a section and functions; see docs/callbacks.md.

    Returns:
        The finished run.

    Raises:
        UserError: anything that cannot work; the text is one line.

    Example:
        >>> run = fit("mlp", "digits", rule="dfa", epochs=2)
        >>> run.result["test"]["accuracy"] > 0.5
        True
    """
    refuse_others(trackers)
    values = {
        "optimizer": optimizer,
        "train": {"epochs": epochs, "seed": seed},
        "trackers": [tracker for tracker in trackers if not isinstance(tracker, Tracker)],
    }
    arguments = [name for name in inspect.signature(fit).parameters if name != "options"]
    described = describe(net, data, rule, values, test=test, loss=loss, options=options, arguments=arguments)
    path = None if out is None else folder.place(out)
    # One process looks at the folder: a moment later it may hold what this very training has begun.
    world = world_of(described.config.train.mesh.name)
    goes_on = path is not None and agreed(world, partial(folder.goes_on, path, resume=resume))
    return train(
        described.config,
        net=net if isinstance(net, nn.Module) else None,
        rule=rule if isinstance(rule, Rule) else None,
        dataset=described.dataset,
        trackers=[tracker for tracker in trackers if isinstance(tracker, Tracker)],
        loss=None if isinstance(loss, str) else loss,
        transforms=described.transforms,
        out=path,
        resume=goes_on,
        verbose=verbose,
    )


def resume(
    path: str | Path, data_dir: str | Path | None = None, *, trust: bool = False, verbose: bool | None = None
) -> Run:
    """Continue a run that was interrupted. A run that is over is only loaded.

    The weights become the same, to the bit, as if the run had never stopped.

    Args:
        path: the run folder.
        data_dir: the directory of data sets; default: the one that the run's config names.
        trust: import what the run's config names as "module:Class", which executes that module.
        verbose: show the progress, as in `fit`.

    Returns:
        The finished run.

    Raises:
        UserError: the folder does not hold a run or a checkpoint, another process writes to it, its net came from
            Python, or its config names code and `trust` is False.
    """
    path = user_path(path, "run")
    values = folder.read_config(path)
    if objects := checkpoint.read_state(path / folder.LAST).from_python:
        raise UserError(
            f"{path}: its {' and '.join(objects)} came from Python as objects, so no config can rebuild the run. "
            "Repeat the call there: bpfree.fit(..., resume=True)"
        )
    with without_foreign_code(path / folder.CONFIG, trust=trust):
        config = parse(values, str(path / folder.CONFIG))
        if data_dir is not None:
            config.data.dir = str(user_path(data_dir, "data_dir"))
        if folder.read_result(path) is not None:
            return load(path, trust=trust)
        return train(config, out=path, resume=True, verbose=verbose)
