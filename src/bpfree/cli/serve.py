"""The command `bpfree serve`."""

from pathlib import Path
from typing import Annotated

import typer

from bpfree.cli.shell import DataDir, Trust, errors_in_one_line, path_of
from bpfree.serve.limits import Limits
from bpfree.serve.packages import require_packages

_LIMITS = Limits()
Runs = Annotated[
    list[Path],
    typer.Argument(metavar="RUN...", help="Run folders, or folders of run folders.", parser=path_of("RUN")),
]
Host = Annotated[str, typer.Option(help="Address to listen at. 0.0.0.0 lets other machines in: there is no password.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port of the server; 0 for any free one.")]
AllowHost = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="A further name under which browsers may ask, as behind a proxy. Repeat it."),
]


def serve(
    runs: Runs,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    allow_host: AllowHost = None,
    max_mb: Annotated[float, typer.Option(min=0.001, help="Megabytes of a request, at most.")] = 8.0,
    max_samples: Annotated[int, typer.Option(min=1, help="Samples of a request, at most.")] = _LIMITS.samples,
    max_seconds: Annotated[float, typer.Option(min=0.1, help="Seconds of a request, at most.")] = _LIMITS.seconds,
    data_dir: DataDir = None,
    trust: Trust = False,
) -> None:
    """Serve runs on a page to play with, and as an HTTP service. Ctrl-C ends it.

    The page takes drawings, images, rows of a table and test samples, and shows what each run answers. The folder of a
    comparison stands for the first seed of each of its rows.

    \b
    Examples:
      bpfree serve runs/mnist-dfa runs/mnist-backprop
      bpfree serve runs/demo --port 0
    """  # noqa: D301 -- \b keeps the lines of the examples apart in --help
    with errors_in_one_line():
        require_packages()
        from bpfree.serve import server
        from bpfree.serve.app import application
        from bpfree.serve.found import find_runs
        from bpfree.serve.served import load_runs

        found = find_runs(runs)
        # The port is taken before the runs are loaded: a port that is not free is refused at once.
        with server.listen(host, port) as listening:
            limits = Limits(body_bytes=round(max_mb * 1e6), samples=max_samples, seconds=max_seconds)
            served = load_runs(found, data_dir, trust=trust, on_skip=lambda words: typer.echo(words, err=True))
            app = application(served, limits, server.names_of(host, allow_host or ()))
            count = "1 run" if len(served) == 1 else f"{len(served)} runs"
            typer.echo(f"{count}: {server.address_of(listening)} (Ctrl-C ends the server)")
            server.run(app, listening, typer.echo)
