"""`bpfree serve` as a process: its address, its end, and its errors."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from bpfree.errors import UserError
from bpfree.serve import server
from bpfree.serve.found import find_runs
from bpfree.serve.served import load_runs
from tests.test_cli import refused


@pytest.fixture
def start():
    """Starts a command, and returns the process and the address that it prints."""
    started = []

    def start(*args):
        command = [sys.executable, "-m", "bpfree", *map(str, args)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        line = process.stdout.readline()
        address = re.search(r"http://\S+", line)
        assert address, line + process.stderr.read()
        return process, address[0]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def get(address):
    with urllib.request.urlopen(address, timeout=20) as answer:
        return json.load(answer)


def test_ctrl_c_ends_the_service_cleanly(start, digit_runs):
    process, address = start("serve", digit_runs / "backprop", "--port", 0)
    assert address.startswith("http://127.0.0.1:")
    assert get(f"{address}health") == {"status": "ok", "runs": 1}
    assert get(f"{address}api/runs")["runs"][0]["id"] == "backprop"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "The server has ended\n", "")


def test_a_port_that_is_taken_is_refused_before_anything_is_loaded(digit_runs):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        error = refused("serve", digit_runs, "--port", port)
        assert (
            error
            == f"error: port: {port} is taken by another program, allowed: a free port. Give --port 0 for any free one"
        )
        assert "is taken" in refused("watch", digit_runs, "--port", port)


def test_folders_and_hosts_that_do_not_exist(tmp_path, digit_runs):
    assert "does not exist" in refused("serve", tmp_path / "nowhere")
    assert "holds no run" in refused("watch", tmp_path, "--port", 0)
    assert "host: found 'no such host'" in refused("serve", digit_runs, "--host", "no such host", "--port", 0)
    assert "cannot be opened" in refused("serve", digit_runs, "--host", "203.0.113.7", "--port", 0)


def test_a_missing_package_names_the_extra(monkeypatch, digit_runs):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    error = refused("serve", digit_runs)
    assert (
        error
        == "error: serve: needs the package uvicorn, which is not installed. Install it: pip install 'bpfree[serve]'"
    )
    assert "bpfree[serve]" in refused("watch", digit_runs)


def test_a_run_that_names_code_is_refused(digit_runs, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for file in ("last.ckpt", "metrics.jsonl"):
        (run / file).symlink_to(digit_runs / "backprop" / file)
    config = (digit_runs / "backprop" / "config.yaml").read_text()
    (run / "config.yaml").write_text(re.sub(r"name: mlp", "name: os:system", config))
    assert "os:system" in refused("serve", run, "--port", 0)
    left_out: list[str] = []
    served = load_runs(find_runs([run, digit_runs / "backprop"]), None, trust=False, on_skip=left_out.append)
    assert [each.id for each in served] == ["backprop"]
    assert len(left_out) == 1
    assert "os:system" in left_out[0]
    with pytest.raises(UserError, match="none of the runs"):
        load_runs(find_runs([run, tmp_path / "run" / ".." / "run"]) * 2, None, trust=False)


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
def test_addresses_of_a_browser():
    for host, start in (("127.0.0.1", "http://127.0.0.1:"), ("0.0.0.0", "http://127.0.0.1:"), ("localhost", "http://")):
        with server.listen(host, 0) as listening:
            assert re.fullmatch(start + r"\S*\d+/", server.address_of(listening))
    assert server.names_of("0.0.0.0", ["a"]) == [socket.gethostname(), "a"]
    assert server.names_of("lab.example", []) == ["lab.example"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may open every port")
def test_a_port_that_is_not_allowed():
    with pytest.raises(UserError, match="may not open 80"):
        server.listen("127.0.0.1", 80)
