"""Requests of an attacker: whatever comes, the service does not fail."""

import json
import random
import re
import subprocess
import sys
import urllib.request

import pytest
from starlette.testclient import TestClient

from bpfree.serve.app import application
from bpfree.serve.limits import Limits
from tests.serve.serving import serving

ROUTES = ("/", "/health", "/metrics", "/api/runs", "/api/runs/{run}", "/api/runs/{run}/sample", "/static/{run}")
ASKING = ("/api/runs/{run}/predict", "/api/runs/{run}/inside")
RUNS = ("backprop", "mono_forward", "noprop_dt", "diabetes", "rebuild", "table", "..", "%00", "nobody", "a" * 500, "é")
SCALARS = (0, -1, 1e308, 2**63, 10**400, float("nan"), float("inf"), True, None, "", "\ud800", "\0", "x" * 1000, "é")
KINDS = (
    *("application/json", "application/json; charset=utf-16", "multipart/form-data", "multipart/form-data; boundary=b"),
    *("text/plain", "", "application/x-www-form-urlencoded", "\u00e9"),
)
HEADERS = {
    "origin": ("http://localhost", "http://evil.example", "null", "://", "http://["),
    "host": ("localhost", "localhost:99999999", "[::1", "evil.example", "a" * 300),
    "content-length": ("-1", "9" * 30, "x"),
    "accept": ("text/html", "*/*"),
    "sec-fetch-site": ("cross-site", "none"),
}


def value(rng, depth=0):
    """A random JSON value; some have the shape of samples."""
    kind = rng.randrange(8 if depth < 4 else 4)
    if kind < 4:
        return rng.choice(SCALARS)
    if kind == 4:
        image = [[rng.choice((0, 16, 1e39, -5, 2**40)) for _ in range(8)] for _ in range(8)]
        return [[image]] * rng.choice((1, 2, 1001))
    if kind == 5:
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    names = ("samples", "rows", "drawing", "size", "colour", "")
    return {rng.choice(names): value(rng, depth + 1) for _ in range(rng.randrange(3))}


def body(rng):
    """The content and type of a random body."""
    kind = rng.choice(KINDS)
    choice = rng.randrange(5)
    if choice == 0:
        return rng.randbytes(rng.randrange(300)), kind
    if choice == 1:
        file = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
        return file + rng.choice((b"\x89PNG\r\n\x1a\n", b"GIF89a", b"")) + rng.randbytes(50) + b"\r\n--b--\r\n", kind
    if choice == 2:
        deep = rng.choice((100, 100_000))
        return b"[" * deep + b"]" * deep, kind
    asked = {rng.choice(("samples", "rows", "drawing")): value(rng)}
    return json.dumps(asked).encode("utf-8", "surrogatepass"), rng.choice(KINDS[:1] * 5 + KINDS)


@pytest.mark.parametrize("seed", range(4))
def test_no_request_makes_the_service_fail(served, seed):
    """A defect would raise its exception here. Every refusal has words."""
    rng = random.Random(seed)
    with TestClient(application(served, Limits(body_bytes=300_000)), base_url="http://localhost") as client:
        statuses = set()
        for _ in range(100):
            asks = rng.random() < 0.7
            route = rng.choice(ASKING if asks else ROUTES).format(run=rng.choice(RUNS))
            headers = {name: rng.choice(values) for name, values in HEADERS.items() if rng.random() < 0.04}
            content, kind = body(rng) if asks else (b"", "")
            query = rng.choice(("", "", "?index=-1", "?index=1e9", "?noise=%ff", "?index=%00"))
            method = "POST" if asks else rng.choice(("GET", "GET", "HEAD", "PUT", "OPTIONS", "BREW"))
            headers["content-type"] = kind.encode("utf-8")
            answer = client.request(method, route + query, content=content, headers=headers)
            statuses.add(answer.status_code)
            assert answer.status_code < 500
            if answer.status_code >= 400 and method != "HEAD":
                assert answer.json()["error"], "every refusal has words"
        assert {200, 404, 422} <= statuses
        assert client.get("/health").status_code == 200


@pytest.mark.slow
def test_ten_thousand_requests_by_schemathesis(served, tmp_path):
    """The schema is true, and no request has an answer of the kind 5xx but those of limits."""
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    with serving(application(served, Limits())) as address:
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{address}openapi.json", "--checks", checks]
        options = ["--phases", "coverage,fuzzing", "--max-examples", "2600", "--seed", "0", "--mode", "all"]
        done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, timeout=3600)

        text = urllib.request.urlopen(f"{address}metrics").read().decode()
    counts = re.findall(r'bpfree_requests_total\{.*status="(\d+)"\} ([\d.]+)', text)
    total = sum(float(count) for _, count in counts)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert total >= 10_000
    assert not {status for status, _ in counts} & {"500", "501", "502"}
