"""Run a service on a port until Ctrl-C."""

import errno
import logging
import socket
from collections.abc import Callable, Collection

import uvicorn
from starlette.types import ASGIApp

from bpfree.errors import UserError

_END_SECONDS = 3  # that running requests get after Ctrl-C
_EVERYWHERE = ("0.0.0.0", "::", "")


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; connections wait there until the service runs.

    Args:
        host: a name or an address of this machine.
        port: the port; 0 for any free one.

    Raises:
        UserError: the host is not of this machine, or the port is taken or not allowed.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server((address[0], port), family=family, backlog=128)
    except (socket.gaierror, UnicodeError) as error:
        raise UserError(f"host: found {host!r}, allowed: a name or an address of this machine, as 127.0.0.1") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"port: {port} is taken by another program, allowed: a free port. Give --port 0 for any free one"
            ) from error
        if error.errno == errno.EACCES:
            raise UserError(f"port: this user may not open {port}, allowed: 1024 to 65535, or 0") from error
        raise UserError(f"host: {host} cannot be opened ({error.strerror}), allowed: 127.0.0.1, or 0.0.0.0") from error


def address_of(listening: socket.socket) -> str:
    """Return the address of a listening socket for a browser on the same machine."""
    host, port = listening.getsockname()[:2]
    if host in _EVERYWHERE:
        host = "127.0.0.1"
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def names_of(host: str, allowed: Collection[str]) -> list[str]:
    """Return the names that a request may give as its host, beside IP addresses and localhost.

    Args:
        host: the host that the user named.
        allowed: further names of the user.
    """
    own = [socket.gethostname()] if host in _EVERYWHERE else [host]
    return [*own, *allowed]


def run(app: ASGIApp, listening: socket.socket, on_message: Callable[[str], object]) -> None:
    """Run a service until Ctrl-C or SIGTERM.

    Args:
        app: the service.
        listening: see `listen`; it is closed at the end.
        on_message: called with a sentence when the service has ended by Ctrl-C.
    """
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns about each damaged form of a stranger
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_END_SECONDS,
    )
    try:
        uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:  # uvicorn ends the service first, and then raises the signal again
        on_message("The server has ended")
    finally:
        listening.close()
