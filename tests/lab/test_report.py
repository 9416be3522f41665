"""bpfree report: reports of finished runs, and of runs that failed, were interrupted or are damaged."""

import json
import re
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import bpfree
from bpfree.pictures.confusion import ClassPredictions, predict_classes
from bpfree.trackers import TRACKERS
from tests.helpers import without_pictures
from tests.lab.test_html import Reader
from tests.runs.test_run import power_cut
from tests.test_cli import refused, shell

pytestmark = pytest.mark.usefixtures("undrawn")

HOSTILE = '<img src=x onerror="alert(1)">'


def titles(path, tag="h2"):
    """Return the titles of the sections of a report."""
    html = path.read_text(encoding="utf-8")
    Reader(html)
    return re.findall(rf"<{tag}>(.*?)</{tag}>", html)


def text(path):
    return " ".join(" ".join(Reader(path.read_text(encoding="utf-8")).text).split())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    trackers = [{"name": name, "every": 20} for name in ("bp_cosine", "weight_alignment", "cost")]
    run = bpfree.fit("mlp", "digits", "dfa", epochs=3, trackers=trackers, out=folder / "trained")
    with without_pictures():
        net = {"name": "denoiser", "blocks": 2, "width": 16}
        bpfree.fit(net, "digits", "noprop_dt", epochs=2, out=folder / "noprop")
    return run


def test_a_report_of_one_run(trained):
    written = shell("report", trained.folder).stdout
    assert written == f"{trained.folder / 'report.html'}\n"
    path = Path(written.strip())
    assert titles(path) == [
        *("Result", "Learning curves", "Measured while training", "Confusion", "Most confident mistakes", "Cost"),
        "Run it again",
    ]
    shown = text(path)
    assert f"test accuracy {trained.result['test']['accuracy']:.4f}" in shown
    assert f"{trained.result['parameters']:,}" in shown
    about = TRACKERS["bp_cosine"].__doc__.splitlines()[0]
    assert f"bp_cosine. {about}" in shown
    wrong = round((1 - trained.result["test"]["accuracy"]) * 360)
    assert f"{wrong} of 360 test samples are classified wrongly." in shown
    assert f"bpfree train {trained.folder}/config.yaml --out {trained.folder}-again" in shown
    assert "sample" in Reader(path.read_text()).of("img")[0]["alt"]
    assert {"training.png", "bp_cosine.png", "confusion.png", "wrong.png"} <= {
        child.name for child in (trained.folder / "plots").iterdir()
    }


def test_the_same_run_gives_the_same_report(trained, tmp_path):
    first, again = (bpfree.report(trained.folder, tmp_path / name) for name in ("1.html", "2.html"))
    assert first.read_bytes() == again.read_bytes()


def test_a_report_of_several_runs(trained, tmp_path, monkeypatch):
    folder = trained.folder.parent
    monkeypatch.chdir(tmp_path)
    path = Path(shell("report", folder).stdout.strip())
    assert path == folder / "report.html"
    assert titles(path) == ["Comparison", "Learning curves", "Each run"]
    html = path.read_text()
    assert html.count("<details>") == 4, "of each run, and of its config"
    assert "Inside NoProp" in titles(path, "h3")
    assert "data:image/gif;base64," in html
    other = shutil.copytree(trained.folder, tmp_path / "elsewhere" / "trained")
    path = Path(shell("report", trained.folder, other).stdout.strip())
    assert path == Path("report.html"), "in the current folder, if the runs share none"
    assert str(other) in text(path)
    assert str(trained.folder) in text(path)


def test_the_figures_of_the_matrix(digits_data, trained):
    answers = predict_classes(trained, digits_data.test)
    matrix = answers.confusion()
    assert int(matrix.sum()) == 360
    accuracy = trained.result["test"]["accuracy"]
    assert int(matrix.trace()) == round(accuracy * 360)
    for true, said in ((3, 3), (8, 1), (9, 9)):
        assert int(matrix[true, said]) == int(((answers.true == true) & (answers.predicted == said)).sum())


def test_the_most_wrong_are_the_surest_of_the_wrong():
    true, said = torch.tensor([0, 1, 0, 1, 0]), torch.tensor([1, 1, 1, 0, 0])
    answers = ClassPredictions(torch.zeros(5, 2), true, said, torch.tensor([0.6, 0.99, 0.9, 0.7, 0.8]), 2)
    assert answers.most_wrong().tolist() == [2, 3, 0]
    assert answers.most_wrong(2).tolist() == [2, 3]
    right = ClassPredictions(torch.zeros(2, 2), true[:2], true[:2], torch.ones(2), 2)
    assert right.most_wrong().tolist() == []


def test_a_run_that_diverged(tmp_path):
    done = shell("train", "digits/backprop", "optimizer=sgd", "optimizer.lr=1e30", "--out", tmp_path / "run")
    assert done.exit_code == 2
    shown = text(Path(shell("report", tmp_path / "run").stdout.strip()))
    assert "not finished: 0 of 40 epochs" in shown
    assert "It stopped because: training diverged: the loss became" in shown
    assert "No epoch was completed" in shown


def test_a_run_that_was_interrupted(tmp_path, monkeypatch):
    with power_cut(monkeypatch, 60), suppress(RuntimeError):
        bpfree.fit("mlp", "digits", "dfa", epochs=5, out=tmp_path / "run")
    path = bpfree.report(tmp_path / "run")
    assert "not finished: 2 of 5 epochs" in text(path)
    assert f"bpfree train --resume {tmp_path / 'run'}" in text(path)
    assert "Learning curves" in titles(path)
    assert "Measured while training" not in titles(path)


def test_a_run_whose_data_came_from_python(tmp_path, digits_data):
    run = bpfree.fit("mlp", digits_data.train, "dfa", epochs=1, test=digits_data.test, out=tmp_path / "run")
    path = bpfree.report(tmp_path / "run")
    assert "the data of the run came from Python and are not stored" in text(path)
    assert "Confusion" not in titles(path)
    assert "Confusion" in titles(bpfree.report(run))


def test_a_run_without_a_test_split_or_a_folder(tmp_path, monkeypatch, digits_data):
    run = bpfree.fit("mlp", digits_data.train, "dfa", epochs=1)
    assert "the data of the run came from Python" in text(bpfree.report(run, tmp_path / "x.html"))
    with pytest.raises(bpfree.UserError, match="out: found none, and the run has no folder"):
        bpfree.report(run)
    named = bpfree.fit("mlp", "digits", "dfa", epochs=1, out=tmp_path / "run")
    untested = bpfree.data.Dataset("digits", digits_data.train, None, bpfree.data.Labels(10), white=16.0)
    monkeypatch.setitem(bpfree.data.DATASETS, "digits", lambda _: untested)
    shown = text(bpfree.report(named.folder))
    assert "The data set has no test split, so the report shows predictions for validation samples." in shown
    assert "of 144 validation samples are classified wrongly" in shown


def test_data_and_code_that_are_gone(tmp_path, monkeypatch):
    named = bpfree.fit("mlp", "digits", "dfa", epochs=1, out=tmp_path / "run")

    def gone(_):
        raise bpfree.UserError("digits: could not be downloaded")

    monkeypatch.setitem(bpfree.data.DATASETS, "digits", gone)
    assert "the data cannot be read: digits: could not be downloaded" in text(bpfree.report(named.folder))
    own = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    monkeypatch.undo()
    bpfree.fit(own, "digits", "backprop", epochs=1, out=tmp_path / "own")
    shown = text(bpfree.report(tmp_path / "own"))
    assert "cannot be loaded" in shown
    assert "its net was an object from Python" in shown


def test_samples_that_are_no_images_and_classes_that_are_many(tmp_path):
    random = np.random.default_rng(0)
    x, y = random.random((300, 5), dtype=np.float32), np.arange(300) % 30
    run = bpfree.fit("mlp", (x, y), "dfa", epochs=1, test=(x, y), out=tmp_path / "run")
    path = bpfree.report(run)
    assert "Samples are numbered from 0" in text(path)
    assert not Reader(path.read_text()).of("img")
    assert {"confusion.png", "training.png"} == {child.name for child in (tmp_path / "run" / "plots").iterdir()}


def test_reconstructions(tmp_path):
    run = bpfree.fit("mlp", "digits", "dfa", epochs=1, task="reconstruct", out=tmp_path / "run")
    path = bpfree.report(run)
    assert titles(path) == ["Result", "Learning curves", "Reconstructions", "Cost", "Run it again"]


@pytest.fixture
def old(trained, tmp_path):
    """A copy of a run that a test may damage."""
    return shutil.copytree(trained.folder, tmp_path / "old")


def test_a_folder_of_an_older_version(old):
    (old / "result.json").write_text(json.dumps({"test": None, "weights": "last", **OLD}))
    records = [{"epoch": 1, "train": {"loss": 2.0}}, {"epoch": 2, "train": None, "validation": {"loss": "nan"}}, [], 3]
    (old / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + '{"epoch": 3, "tr')
    (old / "config.yaml").write_text("rule: dfa\ndata: {name: digits}\n")
    state = old / "last.ckpt" / "state.json"
    values = json.loads(state.read_text())
    del values["preprocess"]
    state.write_text(json.dumps(values))
    shown = text(bpfree.report(old))
    assert "damaged: preprocess is missing" in shown
    assert "metrics.jsonl: 1 damaged lines are left out" in shown


OLD = {"rule": "dfa", "dataset": "digits", "wall_seconds": 1}


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "result.json", "last.ckpt/state.json", "last.ckpt/weights.safetensors"]
)
@pytest.mark.parametrize("content", [b"", b"\xff\x00{", None, b"[1, 2]", b'{"test": 3}'])
def test_a_damaged_folder(old, name, content, monkeypatch):
    monkeypatch.setattr("bpfree.lab.report.report.draw_figures", lambda *_: {})
    if content is None:
        (old / name).unlink()
    else:
        (old / name).write_bytes(content)
    assert "Run it again" in titles(bpfree.report(old))


def test_hostile_text_in_names(old):
    layers = {HOSTILE: 1.0, "_hidden": 2.0, "$x_{": 3.0, "\u65e5\u672c\U0001f600": 4.0, "\ud800": 5.0, "a\x1b[0m": 6.0}
    tracked = [
        {"kind": "tracker", "tracker": tracker, "step": step, "values": layers}
        for tracker in (HOSTILE, "../../evil", "$_{")
        for step in (1, 2)
    ]
    epoch = {"kind": "epoch", "epoch": 1, "step": 1, "train": {"loss": 1.0, HOSTILE: 2.0, "$": 1.0}, "seconds": 1}
    (old / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in [*tracked, epoch]))
    config = yaml.safe_load((old / "config.yaml").read_text())
    config["net"] = {"name": HOSTILE, "x": "$x_{ \u65e5"}
    (old / "config.yaml").write_text(yaml.safe_dump(config))
    spoiled = old.rename(old.with_name("<b>&'$x {old}"))
    shown = bpfree.report(spoiled).read_text(encoding="utf-8")
    Reader(shown)
    assert "onerror" in shown
    assert HOSTILE not in shown
    for other in (config["net"], {"name": "mlp"}):
        config["net"] = other
        (spoiled / "config.yaml").write_text(yaml.safe_dump(config))
        Reader(bpfree.report([spoiled, spoiled]).read_text(encoding="utf-8"))
    assert not list(spoiled.parent.rglob("evil*"))


def test_report_refuses(trained, tmp_path):
    assert "run: nowhere does not exist" in refused("report", "nowhere")
    assert "is not a run folder" in refused("report", tmp_path)
    config = trained.folder / "config.yaml"
    assert "allowed: a file whose name ends in .html" in refused("report", trained.folder, "--out", config)
    assert "allowed: a file whose name ends in .html" in refused("report", trained.folder, "--out", tmp_path)
    (tmp_path / "file").write_text("")
    assert "error: " in refused("report", trained.folder, "--out", tmp_path / "file" / "x.html")
    with pytest.raises(bpfree.UserError, match="runs: found none, allowed: at least one"):
        bpfree.report([])


def test_pictures_that_cannot_be_written(old):
    shutil.rmtree(old / "plots")
    (old / "plots").write_text("no folder")
    assert "The pictures of the run could not be written" in text(bpfree.report(old))
