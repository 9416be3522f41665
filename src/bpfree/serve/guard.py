"""A guard that all requests and answers pass, whatever their route.

A web page of a stranger that is open in a browser can send requests to a server on the same machine. Three checks stop
it:

- `Host`: a page may give its own domain name the address 127.0.0.1 (DNS rebinding). Its requests then name that domain.
- `Origin`: the browser says which page a request comes from. Pages of other servers are refused.
- `Sec-Fetch-Site`: the same for requests without `Origin`, such as images. Links from other pages are allowed.

Answers carry headers that let a page load nothing but its own files, and run no script within the HTML.
"""

import ipaddress
import time
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bpfree.errors import shown
from bpfree.serve.counts import Counts
from bpfree.serve.limits import Limits, RequestError
from bpfree.serve.refusal import refusal

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """An ASGI application around another one: it checks requests, limits bodies, adds headers, and counts.

    Args:
        app: the application.
        hosts: names that a request may give as its host, beside IP addresses and localhost.
        limits: the size of a body.
        counts: counts the requests.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str], limits: Limits, counts: Counts) -> None:
        self.app = app
        self.hosts = frozenset(host.lower() for host in hosts)
        self.limits = limits
        self.counts = counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection of ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        headers = Headers(scope=scope)
        error = refuse_foreign(headers, self.hosts) or self._refuse_large(headers)
        try:
            if error is not None:
                await refusal(error.status, str(error))(scope, receive, marked)
            else:
                await self.app(scope, self._limited(receive), marked)
        finally:
            # The route is known only afterwards. Addresses of anybody's choice must not become names of counters.
            route = getattr(scope.get("route"), "path", "other")
            self.counts.request(route, scope["method"], status, time.perf_counter() - start)

    def _refuse_large(self, headers: Headers) -> RequestError | None:
        """Return the error if a body says that it is too large."""
        length = headers.get("content-length", "0")
        is_large = length.isdecimal() and (len(length) > 18 or int(length) > self.limits.body_bytes)
        return self._too_large() if is_large else None

    def _too_large(self) -> RequestError:
        return RequestError(413, f"body: too large, allowed: {self.limits.body_bytes:,} bytes at most. Send less")

    def _limited(self, receive: Receive) -> Receive:
        """Return `receive` with an error once a body without a length becomes too large."""
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.limits.body_bytes:
                raise self._too_large()
            return message

        return limited


def refuse_foreign(headers: Headers, hosts: Collection[str]) -> RequestError | None:
    """Return the error for a request of another site; None for a request that is allowed.

    Args:
        headers: of the request.
        hosts: names that are allowed beside IP addresses and localhost, in small letters.
    """
    host = headers.get("host", "")
    name = host_name(host)
    if not (name == "localhost" or name in hosts or _is_address(name)):
        return RequestError(
            403, f"Host: found {shown(host)}, allowed: an IP address or localhost. Allow a name with --allow-host NAME"
        )
    origin = headers.get("origin")
    if origin is not None and _netloc(origin) != host.lower():
        return RequestError(403, f"Origin: found {shown(origin)}, allowed: pages of this server alone")
    if headers.get("sec-fetch-site") in ("cross-site", "same-site") and headers.get("sec-fetch-mode") != "navigate":
        return RequestError(403, "Sec-Fetch-Site: the request comes from another site, allowed: pages of this server")
    return None


def host_name(host: str) -> str:
    """Return the name in a Host header, in small letters, without the port and the brackets of IPv6.

    Example:
        >>> host_name("LocalHost:8000"), host_name("[::1]:8000")
        ('localhost', '::1')
    """
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


def _netloc(origin: str) -> str | None:
    """Return the host and port of an origin; None if it has none."""
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


def _is_address(name: str) -> bool:
    """Return True for an IP address, which no other site can claim as its name."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
