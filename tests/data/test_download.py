"""Downloads from a real server on loopback, good and bad: success or one clear error, never half a file."""

import functools
import hashlib
import http.server
import re
import threading

import pytest

from bpfree.data.download import Source, data_directory, find
from bpfree.errors import UserError

CONTENT = b"the real file" * 1000
HASH = f"md5:{hashlib.md5(CONTENT).hexdigest()}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path.startswith("/missing"):
            self.send_error(404)
            return
        body = {"/good": CONTENT, "/wrong": b"x" * len(CONTENT), "/cut": CONTENT[:5000]}[
            self.path[: self.path.rfind("/")]
        ]
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


def get(server, tmp_path, *mirrors):
    source = Source(("there",), tuple(f"{server}/{mirror}/" for mirror in mirrors), {"file.gz": HASH})
    return functools.partial(find, "set", source, "file.gz", tmp_path)


def test_a_good_mirror_serves_after_bad_ones(server, tmp_path):
    path = get(server, tmp_path, "missing", "wrong", "cut", "good")()
    assert path == tmp_path / "there" / "file.gz"
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["file.gz"]


def test_what_is_there_is_not_fetched(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_bytes(b"unzipped")
    assert get("http://127.0.0.1:1", tmp_path, "none")() == tmp_path / "there" / "file"


@pytest.mark.parametrize(
    ("mirror", "reason"),
    [("missing", "answers 404"), ("wrong", "sent another file"), ("cut", "broke off|sent another file")],
)
def test_a_bad_mirror_alone_is_one_clear_error_and_no_file(mirror, reason, server, tmp_path):
    with pytest.raises(
        UserError, match=r"data set 'set': file.gz is not in .*there and could not be downloaded"
    ) as caught:
        get(server, tmp_path, mirror)()
    assert re.search(reason, str(caught.value))
    assert "\n" not in str(caught.value)
    assert [p for p in (tmp_path / "there").glob("*") if p.is_file()] == []


def test_no_network(tmp_path):
    with pytest.raises(
        UserError, match="cannot be reached, or broke off.*Connect to the network, or put the file there"
    ):
        get("http://127.0.0.1:1", tmp_path / "nowhere", "x")()


def test_the_data_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("BPFREE_DATA", str(tmp_path / "env"))
    assert data_directory(tmp_path / "given") == tmp_path / "given"
    assert data_directory() == tmp_path / "env"
    monkeypatch.delenv("BPFREE_DATA")
    assert data_directory().name == "bpfree"
