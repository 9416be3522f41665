"""Downloads from a real server on loopback, good and bad: success or one clear error, never half a file."""

import errno
import functools
import hashlib
import io
import multiprocessing
import os
import re
import socket
import subprocess
import sys
import threading
import time
import zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from rich.console import Console

from bpfree.data.files import transfer
from bpfree.data.files.download import Source, data_directory, find, is_here, offline
from bpfree.errors import UserError
from bpfree.screen import live
from tests.data.server import CONTENT, Handler, Server

HASH = f"md5:{hashlib.md5(CONTENT).hexdigest()}"
PART = ".file.gz.part"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(transfer, "WAITS", (0.01, 0.01))
    with Server(("127.0.0.1", 0), Handler) as httpd:
        httpd.asked = []
        threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield httpd
        httpd.shutdown()


def get(server, tmp_path, *mirrors, **changes):
    address = server if isinstance(server, str) else f"http://127.0.0.1:{server.server_port}"
    source = Source(("there",), tuple(f"{address}/{mirror}/" for mirror in mirrors), {"file.gz": HASH}, **changes)
    return functools.partial(find, "set", source, "file.gz", tmp_path)


def expect_whole(tmp_path, path):
    assert path == tmp_path / "there" / "file.gz"
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["file.gz"]


def put_part(tmp_path, content):
    (tmp_path / "there").mkdir(exist_ok=True)
    (tmp_path / "there" / PART).write_bytes(content)


def test_a_good_mirror_serves_after_bad_ones(server, tmp_path):
    expect_whole(tmp_path, get(server, tmp_path, "missing", "wrong", "cut", "fails", "good")())


@pytest.mark.parametrize("mirror", ["good", "ranges", "chunked", "zips", "redirects", "breaks"])
def test_good_servers(mirror, server, tmp_path):
    expect_whole(tmp_path, get(server, tmp_path, mirror)())


def test_what_is_there_is_not_fetched(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_bytes(b"unzipped")
    assert get("http://127.0.0.1:1", tmp_path, "none")() == tmp_path / "there" / "file"


BAD = {
    "missing": "answers 404",
    "wrong": "sent another file than the known one",
    "cut": "cannot be reached, or broke off",
    "fails": "answers 500",
}


@pytest.mark.parametrize("mirror", BAD)
def test_a_bad_mirror_alone_is_one_clear_error_and_no_file(mirror, server, tmp_path):
    with pytest.raises(
        UserError, match=r"data set 'set': file.gz is not in .*there and could not be downloaded"
    ) as caught:
        get(server, tmp_path, mirror)()
    assert re.search(BAD[mirror], str(caught.value))
    assert "\n" not in str(caught.value)
    assert [p.name for p in (tmp_path / "there").iterdir()] == ([PART] if mirror == "cut" else [])
    assert len(server.asked) == (3 if mirror in ("cut", "fails") else 1), "what may pass is tried again"


def test_every_mirror_is_in_the_error(server, tmp_path):
    with pytest.raises(UserError, match=r"/missing/ answers 404; http.*/wrong/ sent another file"):
        get(server, tmp_path, "missing", "wrong")()


@pytest.mark.parametrize("have", [1, 50_000, len(CONTENT) - 1])
def test_an_interrupted_download_goes_on(have, server, tmp_path):
    put_part(tmp_path, CONTENT[:have])
    expect_whole(tmp_path, get(server, tmp_path, "ranges")())
    assert server.asked == [("/ranges/file.gz", f"bytes={have}-")]


def test_a_server_that_knows_no_ranges_sends_it_anew(server, tmp_path):
    put_part(tmp_path, CONTENT[:50_000])
    expect_whole(tmp_path, get(server, tmp_path, "good")())


def test_a_connection_that_drops_again_and_again(server, tmp_path):
    with pytest.raises(UserError, match="broke off"):
        get(server, tmp_path, "drops")()
    assert (tmp_path / "there" / PART).read_bytes() == CONTENT[:90_000]
    expect_whole(tmp_path, get(server, tmp_path, "drops")())
    assert [asked for _, asked in server.asked] == [None, "bytes=30000-", "bytes=60000-", "bytes=90000-"]


@pytest.mark.parametrize("part", [b"other" * 100, b"x" * len(CONTENT), bytes(2 * len(CONTENT))])
@pytest.mark.parametrize("mirror", ["ranges", "good"])
def test_a_part_of_another_file_is_thrown_away(mirror, part, server, tmp_path):
    put_part(tmp_path, part)
    expect_whole(tmp_path, get(server, tmp_path, mirror)())


def test_a_part_that_is_whole_already(server, tmp_path):
    put_part(tmp_path, CONTENT)
    expect_whole(tmp_path, get(server, tmp_path, "whole")())


def test_a_part_that_is_too_long_for_the_server(server, tmp_path):
    put_part(tmp_path, CONTENT + b"more")
    with pytest.raises(UserError, match="answers 416"):
        get(server, tmp_path, "whole")()
    assert list((tmp_path / "there").iterdir()) == []


def test_another_part_than_was_asked_for_is_not_appended(server, tmp_path):
    with pytest.raises(UserError, match="broke off"):
        get(server, tmp_path, "elsewhere")()
    assert (tmp_path / "there" / PART).read_bytes() == CONTENT[:5000]
    expect_whole(tmp_path, get(server, tmp_path, "elsewhere", "ranges")())


def test_stalls(server, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "STALL_SECONDS", 0.2)
    start = time.monotonic()
    with pytest.raises(UserError, match="does not answer, or too slowly"):
        get(server, tmp_path, "stalls")()
    assert time.monotonic() - start < 2.5
    expect_whole(tmp_path, get(server, tmp_path, "stalls_once")())
    assert server.asked[-1] == ("/stalls_once/file.gz", "bytes=20000-")


def test_a_server_that_trickles(server, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "STALL_SECONDS", 0.2)
    with pytest.raises(UserError, match="does not answer, or too slowly"):
        get(server, tmp_path, "trickles")()


def test_a_server_that_does_not_end(server, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "LARGEST", 500_000)
    with pytest.raises(UserError, match="sends more bytes than any known file"):
        get(server, tmp_path, "endless")()
    part = tmp_path / "there" / PART
    assert part.stat().st_size < 2_000_000


def test_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "WAITS", (0.01, 0.01))
    with pytest.raises(
        UserError, match="cannot be reached, or broke off.*Connect to the network, or put the file there"
    ):
        get("http://127.0.0.1:1", tmp_path / "nowhere", "x")()
    assert list((tmp_path / "nowhere" / "there").iterdir()) == []


def test_a_server_that_comes_back_after_a_break(server, tmp_path, monkeypatch):
    """Nothing listens at first; the port is taken while the download waits for its next attempt."""
    monkeypatch.setattr(transfer, "WAITS", (0.4, 0.4))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    late = Server(("127.0.0.1", port), Handler, bind_and_activate=False)
    late.asked, late.allow_reuse_address = [], True

    def come_back():
        time.sleep(0.3)
        late.server_bind()
        late.server_activate()
        late.serve_forever(poll_interval=0.01)

    threading.Thread(target=come_back, daemon=True).start()
    put_part(tmp_path, CONTENT[:1000])
    expect_whole(tmp_path, get(f"http://127.0.0.1:{port}", tmp_path, "ranges")())
    assert late.asked == [("/ranges/file.gz", "bytes=1000-")]
    late.shutdown()
    late.server_close()


def test_a_killed_download_goes_on(server, tmp_path):
    """A real process, killed in the middle."""
    script = (
        "import sys; from pathlib import Path; from bpfree.data.files.download import Source, find\n"
        f"source = Source(('there',), (sys.argv[1],), {{'file.gz': '{HASH}'}})\n"
        "find('set', source, 'file.gz', Path(sys.argv[2]))"
    )
    address = f"http://127.0.0.1:{server.server_port}/stalls/"
    process = subprocess.Popen([sys.executable, "-c", script, address, str(tmp_path)])
    part = tmp_path / "there" / PART
    for _ in range(600):
        if part.exists() and part.stat().st_size == 20_000:
            break
        time.sleep(0.1)
    process.kill()
    process.wait()
    assert list((tmp_path / "there").iterdir()) == [part]
    expect_whole(tmp_path, get(server, tmp_path, "ranges")())
    assert server.asked[-1] == ("/ranges/file.gz", "bytes=20000-")


def _download(address, folder, results):
    try:
        results.put(get(address, folder, "ranges")().read_bytes() == CONTENT)
    except Exception as error:
        results.put(repr(error))


def test_several_processes_at_once(server, tmp_path):
    """One of them goes on with the download; the others wait for it."""
    put_part(tmp_path, CONTENT[:1000])
    assert at_once(_download, f"http://127.0.0.1:{server.server_port}", tmp_path) == [True] * 4
    expect_whole(tmp_path, tmp_path / "there" / "file.gz")
    assert server.asked == [("/ranges/file.gz", "bytes=1000-")]


def at_once(target, *args):
    """What four processes put into a queue."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=target, args=(*args, results)) for _ in range(4)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    return found


def _unpack(source, folder, results):
    try:
        results.put(find("set", source, "inside.txt", folder).read_text())
    except Exception as error:
        results.put(repr(error))


def test_several_processes_unpack_one_archive(tmp_path):
    """The defect: one removed the archive that another was about to open."""
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("all/inside.txt", "x" * 100_000)
    (tmp_path / "served").mkdir()
    (tmp_path / "all.zip").rename(tmp_path / "served" / "all.zip")
    known = hashlib.md5((tmp_path / "served" / "all.zip").read_bytes()).hexdigest()
    handler = functools.partial(SimpleHTTPRequestHandler, directory=tmp_path / "served")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        mirror = f"http://127.0.0.1:{httpd.server_port}/"
        source = Source(("there",), (mirror,), {"all.zip": f"md5:{known}"}, "all.zip", ("all/inside.txt",))
        assert at_once(_unpack, source, tmp_path / "data") == ["x" * 100_000] * 4
        httpd.shutdown()
    assert [path.name for path in (tmp_path / "data" / "there").iterdir()] == ["inside.txt"]


def test_a_part_that_somebody_else_fills_is_left_alone(server, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    put_part(tmp_path, CONTENT[:1000])
    part = tmp_path / "there" / PART
    with open(part, "ab") as theirs:
        fcntl.flock(theirs, fcntl.LOCK_EX)
        path = get(server, tmp_path, "ranges")()
    assert path.read_bytes() == CONTENT
    assert part.read_bytes() == CONTENT[:1000]
    assert server.asked == [("/ranges/file.gz", None)]
    assert sorted(p.name for p in part.parent.iterdir()) == [PART, "file.gz"]


def test_what_a_process_left_that_was_killed_beside_another_is_removed(server, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    put_part(tmp_path, CONTENT[:1000])
    left, filled = (tmp_path / "there" / f".file.gz.{number}.part" for number in (2, 3))
    left.write_bytes(CONTENT[:500])
    with open(filled, "ab") as theirs:
        fcntl.flock(theirs, fcntl.LOCK_EX)
        get(server, tmp_path, "ranges")()
    assert server.asked == [("/ranges/file.gz", "bytes=1000-")]
    assert sorted(p.name for p in left.parent.iterdir()) == [filled.name, "file.gz"]


def test_a_drive_without_locks(server, tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    put_part(tmp_path, CONTENT[:1000])
    expect_whole(tmp_path, get(server, tmp_path, "ranges")())
    assert server.asked == [("/ranges/file.gz", "bytes=1000-")]


def test_offline_nothing_is_asked_for(server, tmp_path):
    with offline(), pytest.raises(UserError, match="file.gz is not in .*there. `bpfree data get set` downloads it"):
        get(server, tmp_path, "good")()
    assert server.asked == []
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_written(server, tmp_path):
    (tmp_path / "there").write_text("in the way")
    with pytest.raises(UserError, match=r"data set 'set': .*there cannot be written"):
        get(server, tmp_path, "good")()


@pytest.mark.skipif(getattr(os, "geteuid", int)() == 0, reason="root may write anywhere")
def test_a_directory_without_permission(server, tmp_path):
    (tmp_path / "there").mkdir(mode=0o500)
    with pytest.raises(UserError, match="Permission denied"):
        get(server, tmp_path, "good")()


def test_a_progress_bar_at_a_terminal_alone(server, tmp_path, capsys, monkeypatch):
    get(server, tmp_path / "quiet", "good")()
    assert capsys.readouterr() == ("", "")
    seen = io.StringIO()
    monkeypatch.setattr(live, "Console", lambda **_: Console(file=seen, force_terminal=True, width=100))
    get(server, tmp_path, "good")()
    assert "file.gz" in seen.getvalue()
    assert "102.4/102.4 kB" in seen.getvalue()


def test_is_it_here(tmp_path):
    loose = Source(("a", "b"), (), {"one.gz": "", "two.gz": ""})
    packed = Source(("a",), (), {"all.zip": ""}, archive="all.zip", members=("x/one", "x/two"))
    assert not is_here(loose, tmp_path)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "one").touch()
    assert not is_here(loose, tmp_path)
    (tmp_path / "b" / "two.gz").touch()
    assert is_here(loose, tmp_path)
    assert not is_here(packed, tmp_path)
    (tmp_path / "all.zip").touch()
    assert is_here(packed, tmp_path)


def test_the_data_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("BPFREE_DATA", str(tmp_path / "env"))
    assert data_directory(tmp_path / "given") == tmp_path / "given"
    assert data_directory() == tmp_path / "env"
    monkeypatch.delenv("BPFREE_DATA")
    assert data_directory().name == "bpfree"
