"""The HTTP service: its answers, its errors, and who may ask."""

import io
import json
import re
import time

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from bpfree.runs.run import Run
from bpfree.serve.app import application
from bpfree.serve.limits import Limits
from bpfree.serve.watch import watching

JSON = {"content-type": "application/json"}


def png(values):
    file = io.BytesIO()
    Image.fromarray(np.asarray(values, dtype=np.uint8)).save(file, "png")
    return file.getvalue()


def error_of(answer, status):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json()) == {"error"}
    return answer.json()["error"]


def test_the_list_says_what_each_run_is(client):
    runs = {run["id"]: run for run in client.get("/api/runs").json()["runs"]}
    assert list(runs) == ["backprop", "mono_forward", "noprop_dt", "diabetes", "rebuild", "table"]
    digits = runs["mono_forward"]
    assert (digits["rule"], digits["net"], digits["data"]) == ("mono_forward", "mlp", "digits")
    assert digits["input"]["shape"] == [1, 8, 8]
    assert (digits["input"]["low"], digits["input"]["high"]) == (0, 16)
    assert digits["classes"] == list("0123456789")
    assert digits["metrics"]["accuracy"] > 0.85
    assert digits["tests"] == 360
    table = runs["table"]
    assert [column["name"] for column in table["input"]["columns"]] == ["size", "colour"]
    assert table["input"]["columns"][1]["values"] == ["blue", "red"]
    assert table["input"]["columns"][0]["mean"] == pytest.approx(29.5, abs=4)
    assert runs["diabetes"]["classes"] == []
    assert client.get("/api/runs/table").json() == table


@pytest.mark.parametrize("name", ["backprop", "mono_forward", "noprop_dt"])
def test_probabilities_are_those_of_the_run(client, runs, digits_data, name):
    x = digits_data.test.x[:7]
    expected = runs[name].predict_proba(x)
    for body in ({"samples": x.tolist()}, x.tolist(), {"samples": x[:, 0].tolist()}):
        answers = client.post(f"/api/runs/{name}/predict", json=body).json()["answers"]
        assert torch.allclose(torch.tensor([a["probabilities"] for a in answers]), expected, atol=1e-6)
        assert [a["label"] for a in answers] == [str(int(c)) for c in expected.argmax(1)]


def test_other_tasks_have_other_answers(client, runs, digits_data):
    def ask(name, body):
        return client.post(f"/api/runs/{name}/predict", json=body).json()["answers"]

    (feel,) = ask("table", {"rows": [{"size": 4, "colour": "red", "unused": "x"}]})
    assert feel["label"] in ("cold", "warm")
    (number,) = ask("diabetes", {"samples": [[0.0] * 10]})
    assert number["values"] == pytest.approx(runs["diabetes"].predict(torch.zeros(1, 10)).tolist()[0], rel=1e-5)
    x = digits_data.test.x[:2]
    rebuilt = ask("rebuild", {"samples": x.tolist()})
    expected = runs["rebuild"].predict(x)
    assert torch.allclose(torch.tensor([a["values"] for a in rebuilt]), expected, atol=1e-6)
    errors = (expected - x / 16).square().flatten(1).mean(1)
    assert torch.allclose(torch.tensor([a["error"] for a in rebuilt]), errors, atol=1e-6)


def test_an_image_is_read_as_the_data_are(client, runs, digits_data):
    x = digits_data.test.x[3]
    image = png((x[0].float() * 255 / 16).round())
    answer = client.post("/api/runs/backprop/predict", files={"file": ("a.png", image)}).json()
    assert answer["samples"][0] == x.tolist()
    assert answer["answers"][0]["index"] == int(runs["backprop"].predict(x[None])[0])


def test_a_photo_of_a_drawing_has_the_answer_of_the_drawing(client, digits_data):
    x = torch.nn.functional.interpolate(digits_data.test.x[3:4] / 16, size=(40, 40), mode="bilinear")[0, 0]
    photo = png(230 - 200 * torch.nn.functional.pad(x, (60, 30, 10, 20)))
    drawing = torch.nn.functional.pad(x, (9, 9, 9, 9))
    ask = client.post
    photo_answer = ask("/api/runs/backprop/predict", files={"file": photo}, data={"as_drawing": "true"}).json()
    drawn_answer = ask("/api/runs/backprop/predict", json={"drawing": drawing.tolist()}).json()
    assert photo_answer["answers"][0]["index"] == drawn_answer["answers"][0]["index"]
    seen, drawn = (torch.tensor(a["samples"], dtype=torch.float) for a in (photo_answer, drawn_answer))
    assert (seen - drawn).abs().mean() < 1.5


def test_test_samples_are_those_of_the_data(client, served):
    first = client.get("/api/runs/backprop/sample?index=7").json()
    assert first["sample"] == served[0].test.tensor[7].tolist()
    assert first["label"] == str(int(served[0].test.y[7]))
    assert {client.get("/api/runs/backprop/sample").json()["index"] for _ in range(5)} != {7}
    assert isinstance(client.get("/api/runs/diabetes/sample").json()["answer"], float)
    assert "allowed: 0 to 359" in error_of(client.get("/api/runs/backprop/sample?index=360"), 422)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"samples": [[[1.0] * 8] * 7]}, 422, "samples have the shape"),
        ({"samples": [[["a"]]]}, 422, "allowed: an array or tensor of numbers"),
        ({"samples": [[[[float("nan")] * 8] * 8]]}, 422, "NaN"),
        ({"samples": []}, 422, "at least one sample"),
        ({"samples": {"a": [1]}}, 422, "found an object"),
        ({"samples": [[[[0] * 8] * 8]], "rows": []}, 422, "exactly one"),
        ({}, 422, "exactly one"),
        ({"sample": [1]}, 422, "body.sample: found [1]"),
        ("text", 422, "body: found 'text'"),
        ({"rows": [{"size": 1}]}, 422, "the run takes samples"),
        ({"drawing": [[1], [1, 2]]}, 422, "rows of one length"),
        ({"drawing": []}, 422, "found 0 rows"),
        ({"samples": [[[[0] * 8] * 8]] * 1001}, 413, "found 1001, allowed: at most 1000"),
    ],
)
def test_bodies_that_are_refused(client, body, status, words):
    answer = client.post("/api/runs/backprop/predict", content=json.dumps(body), headers=JSON)
    assert words in error_of(answer, status)


def test_an_answer_that_is_not_a_number_is_refused(served, monkeypatch):
    monkeypatch.setattr(Run, "scores", lambda run, x: torch.full((len(x), 10), float("nan")))
    with TestClient(application(served, Limits()), base_url="http://localhost") as client:
        answer = client.post("/api/runs/backprop/predict", json=[[[[1e38] * 8] * 8]])
    assert "the answer of the net is NaN or infinite" in error_of(answer, 422)


def test_rows_that_are_refused(client):
    for row, words in (
        ({"size": 1}, "column 'colour' is missing"),
        ({"size": "big", "colour": "red"}, "column 'size': found 'big'"),
        ({"size": 1, "colour": "green"}, "allowed: blue, red"),
    ):
        assert words in error_of(client.post("/api/runs/table/predict", json={"rows": [row]}), 422)


@pytest.mark.parametrize(
    ("content", "kind", "status", "words"),
    [
        (b"{", "application/json", 422, "not JSON"),
        (b"[" * 100_000, "application/json", 422, "not JSON"),
        (b"\xff\xfe", "application/json", 422, "not JSON"),
        (b"[]", "text/plain", 415, "found 'text/plain'"),
        (b"x", "multipart/form-data", 400, "not a form"),
        (b"x", "multipart/form-data; boundary=b", 400, "not a form"),
        (b'{"samples": "\\ud800"}', "application/json", 422, "body.samples"),
    ],
)
def test_content_that_is_refused(client, content, kind, status, words):
    answer = client.post("/api/runs/backprop/predict", content=content, headers={"content-type": kind})
    assert words in error_of(answer, status)


def test_files_that_are_refused(client):
    def send(run, **form):
        return client.post(f"/api/runs/{run}/predict", **form)

    assert "not an image" in error_of(send("backprop", files={"file": b"\x89PNG no"}), 422)
    assert "not image files" in error_of(send("diabetes", files={"file": png([[0]])}), 422)
    assert "file: missing" in error_of(send("backprop", files={"other": b""}), 422)
    assert "file: missing" in error_of(send("backprop", data={"file": "text"}, files={"x": b""}), 422)
    two = [("file", png([[0]])), ("file", png([[0]]))]
    assert "Send one file" in error_of(send("backprop", files=two), 400)


def test_addresses_and_methods_that_do_not_exist(client):
    assert "unknown run 'nobody'" in error_of(client.get("/api/runs/nobody"), 404)
    assert "nothing at this address" in error_of(client.get("/etc/passwd"), 404)
    assert "nothing at this address" in error_of(client.get("/static/..%2f..%2fapp.py"), 404)
    assert "does not take the method" in error_of(client.delete("/api/runs"), 405)
    assert "noise" in error_of(client.post("/api/runs/backprop/inside?noise=maybe", json=[]), 422)


def test_looks_inside_are_of_one_sample(client, digits_data):
    x = digits_data.test.x[:2].tolist()
    told = client.post("/api/runs/noprop_dt/inside?noise=true", json={"samples": x[:1]}).json()
    assert (told["kind"], told["steps"][0]["name"], len(told["steps"])) == ("walk", "start", 4)
    assert "found 2 samples" in error_of(client.post("/api/runs/noprop_dt/inside", json=x), 422)
    assert "does not predict classes" in error_of(client.post("/api/runs/diabetes/inside", json=[[0.0] * 10]), 422)


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({"host": "localhost:8000"}, True),
        ({"host": "127.0.0.1"}, True),
        ({"host": "[::1]:8000"}, True),
        ({"host": "192.168.1.7:8000"}, True),
        ({"host": "lab.example"}, True),
        ({"host": "LAB.example:1"}, True),
        ({"host": "evil.example"}, False),
        ({"host": "127.0.0.1.evil.example"}, False),
        ({"host": ""}, False),
        ({"host": "[evil"}, False),
        ({"host": "localhost:1", "origin": "http://localhost:1"}, True),
        ({"host": "localhost:1", "origin": "https://localhost:1"}, True),
        ({"host": "localhost:1", "origin": "http://localhost:2"}, False),
        ({"host": "localhost:1", "origin": "http://evil.example"}, False),
        ({"host": "localhost:1", "origin": "null"}, False),
        ({"host": "localhost:1", "origin": "http://["}, False),
        ({"host": "localhost:1", "sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, False),
        ({"host": "localhost:1", "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, True),
        ({"host": "localhost:1", "sec-fetch-site": "same-origin", "sec-fetch-mode": "cors"}, True),
    ],
)
def test_pages_of_strangers_cannot_ask(served, headers, allowed):
    with TestClient(application(served, Limits(), ["lab.example"]), base_url="http://localhost") as client:
        answer = client.get("/api/runs", headers=headers)
        assert answer.status_code == (200 if allowed else 403), answer.text
        if not allowed:
            error_of(answer, 403)


def test_every_answer_has_strict_headers(client):
    for address in ("/", "/static/page.css", "/api/runs", "/nothing", "/health"):
        headers = client.get(address).headers
        assert headers["x-content-type-options"] == "nosniff"
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert "access-control-allow-origin" not in headers


def test_every_file_of_the_pages_is_served(client, digit_runs):
    with TestClient(watching([digit_runs], Limits()), base_url="http://localhost") as other:
        for one in (client, other):
            names, read = ["/"], set()
            while names:
                name = names.pop()
                answer = one.get(name)
                assert answer.status_code == 200, name
                assert answer.headers["content-type"].partition(";")[0] in (
                    *("text/html", "text/css", "text/javascript", "image/svg+xml"),
                )
                read.add(name)
                found = re.findall(r'(?:src|href)="(/static/[^"]+)"|from "\.(/[\w.]+)"', answer.text)
                names += {path or f"/static{module}" for path, module in found} - read
            assert len(read) > 4


def test_limits_of_bytes_hold_with_and_without_a_length(served):
    with TestClient(application(served, Limits(body_bytes=1000)), base_url="http://localhost") as client:
        address = "/api/runs/backprop/predict"
        assert "1,000 bytes" in error_of(client.post(address, content=b"[" + b"0," * 600, headers=JSON), 413)
        parts = (b"0," * 100 for _ in range(10))
        assert "1,000 bytes" in error_of(client.post(address, content=parts, headers=JSON), 413)
        assert "1,000 bytes" in error_of(client.post(address, files={"file": b"0" * 2000}), 413)


def test_an_answer_that_takes_too_long(served, monkeypatch):
    true_scores = Run.scores

    def slow(run, x):
        time.sleep(0.4)
        return true_scores(run, x)

    monkeypatch.setattr(Run, "scores", slow)
    with TestClient(application(served, Limits(seconds=0.2)), base_url="http://localhost") as client:
        answer = client.post("/api/runs/diabetes/predict", json=[[0.0] * 10])
        assert "longer than 0.2 seconds" in error_of(answer, 504)
        monkeypatch.undo()
        assert client.get("/health").json() == {"status": "ok", "runs": 6}


def test_a_defect_is_an_error_in_json(served, monkeypatch, caplog):
    monkeypatch.setattr(Run, "scores", lambda run, x: 1 / 0)
    app = application(served, Limits())
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        answer = client.post("/api/runs/diabetes/predict", json=[[0.0] * 10])
    assert "a defect of bpfree: ZeroDivisionError" in error_of(answer, 500)
    assert "a defect of bpfree" in caplog.text


def test_metrics_count_requests_and_batches(client):
    client.post("/api/runs/diabetes/predict", json=[[0.0] * 10] * 3)
    client.get("/any/address/of/anybody")
    text = client.get("/metrics").text
    assert 'bpfree_requests_total{method="POST",route="/api/runs/{id}/predict",status="200"} 1.0' in text
    assert 'bpfree_requests_total{method="GET",route="other",status="404"} 1.0' in text
    assert 'bpfree_batch_samples_sum{run="diabetes"} 3.0' in text
    assert "/any" not in text


def test_the_schema_describes_every_route(client):
    schema = client.get("/openapi.json").json()
    assert set(schema["paths"]) == {
        *("/health", "/metrics", "/api/runs", "/api/runs/{id}", "/api/runs/{id}/sample"),
        *("/api/runs/{id}/predict", "/api/runs/{id}/inside"),
    }
    predict = schema["paths"]["/api/runs/{id}/predict"]["post"]
    assert set(predict["requestBody"]["content"]) == {"application/json", "multipart/form-data"}
    assert {"200", "403", "404", "413", "415", "422", "503", "504"} <= set(predict["responses"])
    assert "Question" in schema["components"]["schemas"]
