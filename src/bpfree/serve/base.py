"""The parts that the two services share: errors, health, metrics, and the files of their pages."""

from collections.abc import Awaitable, Callable, Collection
from functools import cache
from importlib import resources

from fastapi import FastAPI
from starlette.responses import Response

from bpfree._version import __version__
from bpfree.serve.counts import Counts
from bpfree.serve.forms import Health
from bpfree.serve.guard import Guard
from bpfree.serve.limits import Limits
from bpfree.serve.refusal import add_refusals

_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


def base(
    title: str, page: str, files: Collection[str], limits: Limits, hosts: Collection[str], count: Callable[[], int]
) -> tuple[FastAPI, Counts]:
    """Return an application with a page, its files, /health and /metrics; and its counters.

    Args:
        title: the name of the service in its schema.
        page: the HTML file of the page.
        files: the other files of the page.
        limits: of requests.
        hosts: names that a request may give as its host.
        count: returns the number of runs.
    """
    # Without the pages of FastAPI for the schema, which load scripts from the network.
    app = FastAPI(title=title, version=__version__, docs_url=None, redoc_url=None)
    counts = Counts()
    add_refusals(app)
    app.add_middleware(Guard, hosts=hosts, limits=limits, counts=counts)

    @app.get("/health", summary="Say that the service runs")
    async def health() -> Health:
        return Health(runs=count())

    @app.get("/metrics", summary="Return the numbers that Prometheus reads", response_class=Response)
    async def metrics() -> Response:
        return Response(counts.text(), media_type="text/plain; version=0.0.4")

    # One route for each file: no path of a request ever names a file.
    for name, path in {page: "/", **{file: f"/static/{file}" for file in files}}.items():
        app.add_api_route(path, _sender(name), include_in_schema=False, response_class=Response)
    return app, counts


def _sender(name: str) -> Callable[[], Awaitable[Response]]:
    async def send() -> Response:
        return Response(_read(name), media_type=_TYPES[name.rpartition(".")[2]])

    return send


@cache
def _read(name: str) -> bytes:
    return (resources.files("bpfree.serve") / "page" / name).read_bytes()
