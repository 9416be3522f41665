"""`bpfree watch`: what a page shows of runs while they train and afterwards."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from starlette.testclient import TestClient

import bpfree
from bpfree.lab.report.records import read_run
from bpfree.serve.found import Found
from bpfree.serve.limits import Limits
from bpfree.serve.live import Follower, live_of
from bpfree.serve.watch import watching
from tests.helpers import without_pictures
from tests.lab.chromium import CHROMIUM, Browser, check_page
from tests.serve.serving import serving


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """The folder of two finished runs; one of them has trackers."""
    root = tmp_path_factory.mktemp("watched")
    trackers = [{"name": "bp_cosine", "every": 20}, {"name": "cost", "every": 40}]
    with without_pictures():
        bpfree.fit("mlp", "digits", "mono_forward", epochs=4, trackers=trackers, out=root / "mono", verbose=False)
        bpfree.fit("mlp", "digits", "backprop", epochs=3, out=root / "bp", verbose=False)
    return root


@pytest.fixture
def running(tracked, tmp_path):
    """A run folder as it is after two of four epochs; and a function that writes its next epochs."""
    whole = tracked / "mono"
    lines = (whole / "metrics.jsonl").read_text().splitlines(keepends=True)
    run = tmp_path / "running"
    run.mkdir()
    shutil.copy(whole / "config.yaml", run)

    def write(epochs):
        kept = [line for line in lines if json.loads(line).get("epoch", 0) <= epochs]
        (run / "next").write_text("".join(kept))
        os.replace(run / "next", run / "metrics.jsonl")

    write(2)
    return run, write


def test_a_finished_run(tracked):
    run = read_run(tracked / "mono")
    live = live_of("mono", run, age=1000.0)
    assert (live.state, live.epoch, live.epochs, live.seconds_left) == ("finished", 4, 4, None)
    assert live.latest["test"]["accuracy"] == run.result["test"]["accuracy"]
    assert live.cost["wall_seconds"] == run.result["wall_seconds"]
    accuracy = next(curve for curve in live.curves if curve.title == "accuracy")
    assert [line.name for line in accuracy.lines] == ["validation", "train"]
    assert accuracy.lines[0].y == [record["validation"]["accuracy"] for record in run.history]
    layers = next(curve for curve in live.curves if curve.title == "loss of each layer")
    assert len(layers.lines) == 2
    titles = [curve.title for curve in live.trackers]
    assert titles[0].startswith("bp_cosine")
    assert len([title for title in titles if title.startswith("cost")]) > 1


def test_the_time_that_is_left(running):
    run, _ = running
    recorded = read_run(run)
    for epoch, record in enumerate(recorded.history, 1):
        record["seconds"] = 10.0 * epoch
    live = live_of("running", recorded, age=4.0)
    assert (live.state, live.epoch, live.epochs, live.seconds, live.seconds_left) == ("training", 2, 4, 20.0, 16.0)
    assert live.cost["wall_seconds"] == 20.0
    assert live.cost["cpu_seconds"] > 0
    assert live_of("running", recorded, age=500.0).state == "silent"
    recorded.stopped = "Ctrl-C"
    assert live_of("running", recorded, age=4.0).state == "stopped"


def test_a_run_that_has_just_begun(running):
    run, _ = running
    (run / "metrics.jsonl").unlink()
    live = live_of("new", read_run(run), age=1.0)
    assert (live.state, live.epoch, live.seconds_left, live.curves, live.trackers) == ("training", 0, None, [], [])


def test_files_are_read_again_only_when_they_have_changed(running):
    run, write = running
    follower, found = Follower(), Found("running", run, True)
    assert [follower(found).epoch, follower(found).epoch, follower.reads] == [2, 2, 1]
    write(3)
    assert [follower(found).epoch, follower.reads] == [3, 2]


def test_long_lines_are_thinned(running):
    run, _ = running
    records = [{"epoch": n, "step": n, "train": {"loss": float(n)}, "validation": {}} for n in range(5000)]
    recorded = read_run(run)
    recorded.history = records
    (curve,) = live_of("long", recorded, age=0.0).curves
    (line,) = curve.lines
    assert len(line.x) <= 401
    assert (line.x[0], line.x[-1]) == (0, 4999)


def test_the_service_sees_news_and_new_runs(running, tracked):
    run, write = running
    with TestClient(watching([run.parent], Limits()), base_url="http://localhost") as client:
        first = client.get("/api/watch").json()
        assert [each["id"] for each in first["runs"]] == ["running"]
        assert client.get("/api/watch").json()["mark"] == first["mark"]
        write(3)
        second = client.get("/api/watch").json()
        assert second["mark"] != first["mark"]
        shutil.copytree(tracked / "bp", run.parent / "later")
        assert [each["id"] for each in client.get("/api/watch").json()["runs"]] == ["later", "running"]
        shutil.rmtree(run)
        shutil.rmtree(run.parent / "later")
        assert client.get("/api/watch").json()["runs"] == []
        assert client.get("/").status_code == 200
        assert client.get("/api/watch", headers={"host": "evil.example"}).status_code == 403


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_the_page_follows_a_training(running, tracked):
    run, write = running
    shutil.copytree(tracked / "bp", run.parent / "bp")
    with Browser() as browser, serving(watching([run.parent], Limits())) as address:
        page = browser.visit(address)
        page.wait_for("document.body.dataset.ready === 'true'")
        check_page(page)
        card = (
            "[...document.querySelectorAll('.card')].find((card) => card.querySelector('h3').textContent === 'running')"
        )
        assert page.evaluate(f"{card}.querySelector('.now span').textContent") == "epoch 2 of 4"
        assert page.evaluate(f"{card}.querySelector('.state').textContent") == "training"
        points = "document.querySelectorAll('#curves figure')[0].querySelectorAll('polyline')[1].getAttribute('points')"
        before = page.evaluate(points)
        write(3)
        page.wait_for(f"{card}.querySelector('.now span').textContent === 'epoch 3 of 4'")
        assert page.evaluate(points) != before
        assert page.evaluate("document.querySelectorAll('#layers figure').length") > 2
        assert page.evaluate("document.querySelector('#lead').textContent").startswith("2 runs: 1 training, 1 finished")
        page.close()


@pytest.mark.slow
def test_a_real_training_is_followed(tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "bpfree", "train", "digits/dfa", "train.epochs=60", "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not (out / "metrics.jsonl").exists():
            assert process.poll() is None
            time.sleep(0.1)
        with TestClient(watching([out], Limits()), base_url="http://localhost") as client:
            seen = []
            while process.poll() is None:
                (live,) = client.get("/api/watch").json()["runs"]
                seen.append((live["state"], live["epoch"]))
                time.sleep(0.1)
            (live,) = client.get("/api/watch").json()["runs"]
    epochs = [epoch for _, epoch in seen]
    assert epochs == sorted(epochs)
    assert len(set(epochs)) > 5
    assert seen[0][0] == "training"
    assert (live["state"], live["epoch"]) == ("finished", 60)
