"""`bpfree tune`: a search with Optuna for the values that a config leaves open, by any number of processes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bpfree.lab.tune.results import Tuned


def tune(
    config: str | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    out: str | Path | None = None,
    storage: str | None = None,
    workers: int = 1,
    launcher: str = "local",
    slurm: Mapping[str, Any] | Sequence[str] | None = None,
    data_dir: str | Path | None = None,
    verbose: bool | None = None,
) -> "Tuned":
    """Search for the best values for the markers of a config. The same call again continues the search.

    Args:
        config: a YAML file, a shipped config or plain values, with markers such as
            `lr: {search: log, low: 1e-4, high: 1e-1}` and a section `tune`; see `bpfree.lab.tune.plan.TuneConfig`.
        overrides: changes of the config, each `section.key=value`, as on the command line.
        out: folder of the study. Default: runs/tune-<dataset>-<rule>.
        storage: URL of a database that Optuna supports, for workers on several machines. Default: SQLite in the folder.
        workers: number of processes, each with one thread; with 1 and the launcher "local", this process trains.
        launcher: "local" starts processes on this machine, "slurm" makes each worker a job of a cluster, and "submitit"
            starts processes as submitit does without a cluster; see docs/tune.md.
        slurm: options of Slurm, such as {"partition": "gpu", "time": 60}.
        data_dir: folder of the data sets. Default: the one that the config names.
        verbose: True: show a bar at a terminal or in a notebook, and elsewhere a line for each trial. False: show
            nothing. None: show only a bar.

    Returns:
        The best config, all trials, and the best values for each setting.

    Raises:
        UserError: the config cannot be searched, the folder or database holds another search, or no trial finished.

    Example:
        >>> markers = ["optimizer.lr={search: log, low: 1e-4, high: 1e-1}", "tune.trials=20"]
        >>> tuned = tune("digits/dfa", markers)  # doctest: +SKIP
        >>> tuned.best["params"]  # doctest: +SKIP
        {'optimizer.lr': 0.0132...}
    """
    from bpfree.lab.jobs.launcher import Launcher
    from bpfree.lab.tune.plan import make_plan
    from bpfree.lab.tune.study import search  # with Optuna and its databases, which take a while to import
    from bpfree.lab.tune.trials_bar import trials_bar

    starts = Launcher.of(launcher, slurm)
    plan = make_plan(config, overrides, out=out, storage=storage, data_dir=data_dir)
    with trials_bar(plan, verbose) as on_progress:
        return search(plan, workers, on_progress, starts)
