"""A server on loopback that truncates, stalls, sends the wrong bytes, fails and recovers, for tests of downloads."""

import http.server
import time

CONTENT = bytes(range(256)) * 400


class Server(http.server.ThreadingHTTPServer):
    """What it was asked for, as (path, Range)."""

    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_):
        """Clients that leave are part of the tests."""


class Handler(http.server.BaseHTTPRequestHandler):
    """The first folder of the path says how it behaves."""

    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        server.asked.append((self.path, asked))
        getattr(self, self.path.split("/")[1])(int(asked[6:-1]) if asked else 0)

    def times(self):
        """How often this path was asked for."""
        return sum(path == self.path for path, _ in self.server.asked)

    def answer(self, body, start=0, *, status=200, length=None, **headers):
        if start:
            status, headers = 206, {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}", **headers}
            body = body[start:]
        self.send_response(status)
        for name, value in {"Content-Length": len(body) if length is None else length, **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def good(self, start):
        self.answer(CONTENT)

    def ranges(self, start):
        self.answer(CONTENT, start)

    def missing(self, start):
        self.send_error(404)

    def wrong(self, start):
        self.answer(b"x" * len(CONTENT), start)

    def cut(self, start):
        self.answer(CONTENT[:5000], length=len(CONTENT))

    def drops(self, start):
        """30,000 bytes more with every connection."""
        end = min(start + 30_000, len(CONTENT))
        self.answer(CONTENT[start:end], length=len(CONTENT) - start, status=206 if start else 200, **self.rest(start))

    def rest(self, start):
        return {"Content-Range": f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"} if start else {}

    def stalls(self, start):
        self.answer(CONTENT[:20_000], length=len(CONTENT))
        self.wfile.flush()
        time.sleep(3)

    def stalls_once(self, start):
        self.stalls(start) if self.times() == 1 else self.answer(CONTENT, start)

    def trickles(self, start):
        self.answer(b"", length=len(CONTENT))
        for i in range(60):
            self.wfile.write(CONTENT[i : i + 1])
            self.wfile.flush()
            time.sleep(0.05)

    def breaks(self, start):
        """Overloaded at first, well again afterwards."""
        self.send_error(503) if self.times() <= 2 else self.answer(CONTENT, start)

    def fails(self, start):
        self.send_error(500)

    def elsewhere(self, start):
        """Another part than was asked for."""
        if start:
            self.answer(CONTENT[:50], status=206, **{"Content-Range": f"bytes 0-49/{len(CONTENT)}"})
        else:
            self.cut(start)

    def whole(self, start):
        """To somebody who has all of it."""
        self.answer(b"", status=416, **{"Content-Range": f"bytes */{len(CONTENT)}"})

    def chunked(self, start):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(CONTENT)

    def zips(self, start):
        """A .gz that the server calls a zipped something else: it is to be kept as it is."""
        self.answer(CONTENT, start, **{"Content-Encoding": "gzip"})

    def redirects(self, start):
        self.answer(b"", status=302, Location="/ranges/file.gz")

    def endless(self, start):
        self.send_response(200)
        self.end_headers()
        for _ in range(200):
            self.wfile.write(CONTENT)

    def log_message(self, *args):
        pass
