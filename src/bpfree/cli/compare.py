"""`bpfree compare`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from bpfree.cli.bar import RunsBar
from bpfree.cli.shell import DataDir, errors_in_one_line, path_of
from bpfree.errors import UserError


def compare_rules(
    configs: Annotated[
        list[str], typer.Argument(metavar="CONFIG...", help="Configs as for train, and KEY=VALUE for all of them.")
    ],
    rules: Annotated[
        str | None, typer.Option(help="Rules to train on each config's net and data, such as dfa,eggroll; or all.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each.")] = 3,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write. Default: runs/compare-<config>.", parser=path_of("--out"))
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes at a time, a thread each. Default: one for each core.")
    ] = None,
    target: Annotated[float | None, typer.Option(help="Metric to time. Default: 95 % of backprop's best.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Train rules on the same net, data and epochs, with backprop beside them, and report in HTML."""
    from bpfree.cli.compared import tell  # these two with matplotlib and jinja2, which take a while to import
    from bpfree.lab.compare import compare

    names = [name for name in configs if "=" not in name]
    overrides = [name for name in configs if "=" in name]
    with errors_in_one_line(lambda error: f". {_GO_ON}" if isinstance(error, KeyboardInterrupt) else ""):
        if data_dir is not None:
            overrides.append(f"data.dir={json.dumps(str(data_dir.resolve()))}")
        if not names:
            raise UserError("CONFIG: none was given, allowed: one or more, such as digits/mlp")
        chosen = [rule.strip() for rule in (rules or "").split(",") if rule.strip()]
        command = _command(configs, rules, seeds, out, target)
        with RunsBar() as on_progress:
            done = compare(
                names,
                rules=chosen,
                seeds=seeds,
                out=out,
                jobs=jobs,
                target=target,
                overrides=overrides,
                command=command,
                on_progress=on_progress,
            )
    tell(done)
    if done.failed:
        raise typer.Exit(1)


_GO_ON = "What was trained is kept; go on with the same command"


def _command(configs: Sequence[str], rules: str | None, seeds: int, out: Path | None, target: float | None) -> str:
    """Without what holds on one machine only."""
    from bpfree.lab.compare.page import command_line

    options = [("--rules", rules), ("--seeds", seeds), ("--out", out), ("--target", target)]
    given = [str(part) for name, value in options if value is not None for part in (name, value)]
    return command_line(["compare", *configs, *given])
