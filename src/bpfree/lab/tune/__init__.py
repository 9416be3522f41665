"""`bpfree tune`: the values that a config leaves open are searched by Optuna, by any number of processes."""

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
    data_dir: str | Path | None = None,
) -> "Tuned":
    """Search for the best values of what a config leaves open; the same call goes on with a search.

    Args:
        config: a YAML file, a shipped config or plain values, with markers such as
            `lr: {search: log, low: 1e-4, high: 1e-1}` and a section `tune`; see `bpfree.lab.tune.plan.TuneConfig`.
        overrides: `section.key=value`, as on the command line.
        out: folder of the study; default: runs/tune-<dataset>-<rule>.
        storage: URL of a database that Optuna takes, for workers on several machines; default: SQLite in the folder.
        workers: processes of one thread each; 1 trains in this one.
        data_dir: where data sets are.

    Returns:
        The best config, and all trials.

    Raises:
        UserError: anything that cannot work, said in one line; no trial came to an end.
    """
    from bpfree.lab.tune.plan import make_plan
    from bpfree.lab.tune.study import search  # with Optuna and its databases, which take a while to import

    return search(make_plan(config, overrides, out=out, storage=storage, data_dir=data_dir), workers)
