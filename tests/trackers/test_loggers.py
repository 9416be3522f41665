"""MLflow, Weights & Biases and TensorBoard get all records, by real packages with stores on this disk."""

import json
import struct
import sys
import time
import warnings
from pathlib import Path

import pytest

import bpfree
from bpfree import UserError
from bpfree.api import resume
from bpfree.runs.config import parse
from bpfree.runs.config_file import load_config
from bpfree.runs.train import train
from bpfree.trackers import LOGGERS, Callback, Logger, TensorBoard
from bpfree.trackers.logger import scalars_of
from tests.runs.test_run import power_cut

pytestmark = pytest.mark.usefixtures("undrawn", "at_once")
EPOCH = 20  # steps


def config(*trackers, epochs=3):
    return parse({"rule": "dfa", "train": {"epochs": epochs}, "trackers": [{"name": "weights", "every": 7}, *trackers]})


def expected(run):
    """By name, the steps and values of all numbers of a run."""
    found: dict[str, list[tuple[int, float]]] = {}
    for record in sorted([*run.tracked, *run.metrics], key=lambda record: record["step"]):
        for name, value in scalars_of(record).items():
            found.setdefault(name, []).append((record["step"], value))
    return found


def events_of(folder):
    """The same of the events files of a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def expect_close(found, numbers):
    """TensorBoard rounds to float32."""
    assert found.keys() == numbers.keys()
    for name, points in numbers.items():
        assert [step for step, _ in found[name]] == [step for step, _ in points]
        assert [value for _, value in found[name]] == pytest.approx([value for _, value in points], rel=1e-6)


class Memory(Logger):
    """Keeps what it gets, and fails when it is told to."""

    name = "memory"
    down = False

    def __init__(self):
        self.points, self.closed, self.opened = [], [], []

    def _fail(self):
        if self.down:
            raise ConnectionError("the network is down")

    def open(self, trainer, config, run_id):
        self._fail()
        self.opened.append((run_id, config.get("rule")))
        return run_id or "r1"

    def log(self, points):
        self._fail()
        self.points += points

    def close(self, status, result):
        self._fail()
        self.closed.append((status, result))

    def numbers(self):
        found: dict[str, list[tuple[int, float]]] = {}
        for step, values in self.points:
            for name, value in values.items():
                found.setdefault(name, []).append((step, value))
        return found


def fit(logger, *others, **options):
    trackers = [{"name": "weights", "every": 7}, logger, *others]
    return bpfree.fit("mlp", "digits", "dfa", **{"epochs": 3, **options}, trackers=trackers)


def test_a_logger_gets_everything_once_and_in_order():
    logger = Memory()
    run = fit(logger)
    assert logger.numbers() == expected(run)
    assert {"train/loss", "validation/accuracy", "lr", "weights/fc1.weight"} <= expected(run).keys()
    assert logger.opened == [(None, {"name": "dfa"})]
    assert logger.closed == [("finished", run.result)]


def test_measurements_come_within_a_long_epoch(monkeypatch):
    monkeypatch.setattr("bpfree.trackers.logger._SEND_EVERY", 0)
    logger, seen = Memory(), []
    fit(logger, Callback(on_step=lambda trainer, batch: seen.append(len(logger.points))), epochs=1)
    assert seen[7] == 2, "the first step and the eighth"


def test_a_network_that_is_down_for_a_while_loses_nothing():
    logger = Memory()

    def switch(trainer, record):
        logger.down = record["epoch"] < 2

    with pytest.warns(
        UserWarning, match=r"memory could not log \(ConnectionError: the network is down\). The training go"
    ):
        run = fit(logger, Callback(on_start=lambda trainer: setattr(logger, "down", True), on_epoch=switch), epochs=4)
    assert run.result["test"]["accuracy"] > 0.8
    assert logger.numbers() == expected(run)
    assert logger.closed == [("finished", run.result)]


def test_a_network_that_stays_down_is_not_waited_for():
    logger = Memory()
    logger.down = True
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = fit(logger, epochs=5)
    assert [str(each.message).rpartition(". ")[2] for each in caught] == ["It tries again later"] * 2 + [
        "It does not try again"
    ]
    assert run.result["test"]["accuracy"] > 0.8
    assert not logger.points


def test_a_resumed_run_goes_on_in_the_same_run(tmp_path, monkeypatch):
    first, second = Memory(), Memory()
    with power_cut(monkeypatch, EPOCH + 3, by_ctrl_c=True), pytest.raises(KeyboardInterrupt):
        fit(first, out=tmp_path / "run")
    assert first.closed == [("interrupted", None)]
    run = fit(second, out=tmp_path / "run", resume=True)
    assert second.opened == [("r1", {"name": "dfa"})]
    both = Memory()
    both.points = first.points + second.points
    assert both.numbers() == expected(run)


def test_a_kill_repeats_only_what_the_checkpoint_does_not_know(tmp_path, monkeypatch):
    first, second = Memory(), Memory()
    with power_cut(monkeypatch, EPOCH + 10), pytest.raises(RuntimeError):
        fit(first, out=tmp_path / "run")
    assert first.closed == [("failed", None)]
    run = fit(second, out=tmp_path / "run", resume=True)
    both = Memory()
    both.points = [point for point in first.points if point[0] <= EPOCH] + second.points
    assert both.numbers() == expected(run)


def test_a_trainer_by_itself_and_a_training_that_diverges(digits_data):
    logger = Memory()
    with pytest.raises(bpfree.DivergedError):
        fit(logger, optimizer={"name": "sgd", "lr": 1e30})
    assert logger.closed == [("failed", None)]
    import torch

    from bpfree.data import Batches, Preprocess
    from tests.helpers import TASK, net_for

    logger, split = Memory(), digits_data.train.take(torch.arange(320))
    trainer = bpfree.Trainer(net_for("dfa").float(), "dfa", TASK)
    batches = Batches(split, Preprocess.of(digits_data, split), 32, seed=0)
    trainer.fit(batches, 2, trackers=[logger])
    trainer.fit(batches, 3, trackers=[logger])
    assert logger.closed == [("finished", None)] * 2
    assert logger.opened == [(None, None), ("r1", None)]
    assert [step for step, _ in logger.points] == [10, 20, 30]


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # of MLflow, from SQLAlchemy 2.1
def test_mlflow(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    logger = {"name": "mlflow", "tracking_uri": uri, "experiment": "tests"}
    monkeypatch.chdir(tmp_path)  # where it puts artifacts
    with power_cut(monkeypatch, EPOCH + 3, by_ctrl_c=True), pytest.raises(KeyboardInterrupt):
        train(config(logger), out=tmp_path / "run")
    client = mlflow.MlflowClient(uri)
    (found,) = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    assert found.info.status == "KILLED"
    run = resume(tmp_path / "run", trust=True)
    (found,) = client.search_runs([found.info.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "dfa on digits"
    assert found.data.params["rule.name"] == "dfa"
    assert found.data.params["train.epochs"] == "3"
    assert found.data.metrics["test/accuracy"] == run.result["test"]["accuracy"]
    assert found.data.metrics["result/queries"] == run.result["queries"]
    for name, points in expected(run).items():
        history = client.get_metric_history(found.info.run_id, name)
        assert sorted((m.step, m.value) for m in history) == points
    assert {file.path for file in client.list_artifacts(found.info.run_id)} == {"config.yaml", "result.json"}
    file = Path(found.info.artifact_uri.removeprefix("file://")) / "result.json"
    assert json.loads(file.read_text()) == run.result


def test_wandb_offline(tmp_path, monkeypatch):
    """Its file is read back as its own tools read it."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_CONSOLE", "off")
    run = train(config({"name": "wandb", "mode": "offline", "project": "tests"}, epochs=2))
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    end = time.monotonic() + 60
    while file.stat().st_size < 8 and time.monotonic() < end:
        time.sleep(0.1)  # its own process writes the file, a moment after the run has ended
    found, summary = wandb_file(file)
    assert found == expected(run)
    assert summary["test/accuracy"] == run.result["test"]["accuracy"]
    assert run.progress.logged["wandb"]["id"] in file.name


def wandb_file(path):
    """The numbers by name with their steps, and the summary, of an offline run."""
    from wandb.proto import wandb_internal_pb2

    found, summary = {}, {}
    for data in level_db_log(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        items = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
        for name, value in items.items():
            if not name.startswith("_") and name != "step":
                found.setdefault(name, []).append((items["step"], value))
        for item in record.summary.update:
            summary["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
    return found, summary


def level_db_log(content, block=1 << 15):
    """The records of a file in LevelDB's form of a log, behind the 7 bytes by which wandb knows its own files."""
    place, data = 7, b""
    while place + 7 <= len(content):
        if block - place % block < 7:  # too little is left of the block for a header
            place += block - place % block
        _, size, kind = struct.unpack("<IHB", content[place : place + 7])
        data += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield data
            data = b""


def test_tensorboard_in_memory(tmp_path):
    folder = tmp_path / "boards"
    first, second = (bpfree.fit("mlp", "digits", epochs=2, trackers=[TensorBoard(folder=str(folder))]) for _ in "12")
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]
    for name, run in (("1", first), ("2", second)):
        found = events_of(folder / name)
        test = {f"test/{key}": [(2 * EPOCH, value)] for key, value in run.result["test"].items()}
        expect_close(found, {**expected(run), **test})


def test_tensorboard_goes_on_in_its_folder(tmp_path, monkeypatch):
    board = {"name": "tensorboard", "folder": str(tmp_path / "boards")}
    with power_cut(monkeypatch, EPOCH + 3), pytest.raises(RuntimeError):
        train(config(board), out=tmp_path / "run")
    run = resume(tmp_path / "run", trust=True)
    assert [path.name for path in (tmp_path / "boards").iterdir()] == ["1"]
    found = events_of(tmp_path / "boards" / "1")
    expect_close({name: found[name] for name in expected(run)}, expected(run))


def test_a_run_folder_of_a_stranger_sends_and_writes_nothing(tmp_path, monkeypatch):
    board = {"name": "tensorboard", "folder": str(tmp_path / "boards")}
    with power_cut(monkeypatch, EPOCH + 3), pytest.raises(RuntimeError):
        train(config(board), out=tmp_path / "run")
    with pytest.raises(UserError, match=r"trackers: the config .*config.yaml writes to .*boards.* allow it by --trust"):
        resume(tmp_path / "run")
    state = tmp_path / "run" / "last.ckpt" / "state.json"
    state.write_text(state.read_text().replace('"id": "1"', '"id": "../../elsewhere"'))
    with pytest.warns(UserWarning, match="names the subfolder '../../elsewhere', allowed: a number"):
        resume(tmp_path / "run", trust=True)
    assert not (tmp_path / "elsewhere").exists()
    assert not (tmp_path.parent / "elsewhere").exists()


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_without_the_package(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"trackers: needs the package {name}, .* pip install 'bpfree\[{name}\]'"):
        bpfree.fit("mlp", "digits", trackers=[name])


def test_a_full_disk_is_a_warning(tmp_path):
    (tmp_path / "boards").write_text("a file")
    with pytest.warns(UserWarning, match="tensorboard could not log"):
        run = bpfree.fit("mlp", "digits", epochs=1, trackers=[TensorBoard(folder=str(tmp_path / "boards"))])
    assert run.result["test"]


def test_options_are_checked_and_every_logger_says_what_it_does():
    with pytest.raises(UserError, match=r"unknown key 'tracker.uri'"):
        load_config("digits/dfa", ["trackers=[{name: mlflow, uri: x}]"])
    with pytest.raises(UserError, match=r"tracker.mode: found 'on', allowed: online or offline"):
        load_config("digits/dfa", ["trackers=[{name: wandb, mode: on}]".replace("on}", "'on'}")])
    with pytest.raises(UserError, match=r"tracker.folder: missing; TensorBoard needs it"):
        load_config("digits/dfa", ["trackers=[tensorboard]"])
    assert all(logger.name == name for name, logger in LOGGERS.items())
    with pytest.raises(UserError, match="trackers: found memory 2 times"):
        fit(Memory(), Memory())
