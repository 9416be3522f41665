"""The command `bpfree watch`."""

import typer

from bpfree.cli.serve import AllowHost, Host, Port, Runs
from bpfree.cli.shell import errors_in_one_line
from bpfree.serve.limits import Limits
from bpfree.serve.packages import require_packages


def watch(runs: Runs, host: Host = "127.0.0.1", port: Port = 8001, allow_host: AllowHost = None) -> None:
    """Follow trainings on a page: curves, trackers, cost and the time that is left. Ctrl-C ends it.

    Runs that are over are shown, too. In a folder of runs, runs that begin later appear by themselves.

    \b
    Examples:
      bpfree watch runs/mnist-dfa
      bpfree watch runs
    """  # noqa: D301 -- \b keeps the lines of the examples apart in --help
    with errors_in_one_line():
        require_packages()
        from bpfree.serve import server
        from bpfree.serve.watch import watching

        with server.listen(host, port) as listening:
            app = watching(runs, Limits(), server.names_of(host, allow_host or ()))
            typer.echo(f"Watch: {server.address_of(listening)} (Ctrl-C ends the server)")
            server.run(app, listening, typer.echo)
