"""Trackers of functions, and what people bring from Keras and Lightning."""

import pytest

import bpfree
from bpfree import Tracker, UserError
from bpfree.trackers import Callback
from bpfree.training.listener import Listener

pytestmark = pytest.mark.usefixtures("undrawn")


def test_functions_are_called_in_the_order_of_a_training():
    calls = []

    def note(name):
        return lambda *arguments: calls.append((name, len(arguments)))

    names = ("on_start", "on_step", "on_epoch", "on_end", "on_result")
    bpfree.fit("mlp", "digits", epochs=2, trackers=[Callback(**{name: note(name) for name in names})])
    epoch = [("on_step", 2)] * 20 + [("on_epoch", 2)]
    assert calls == [("on_start", 1), *epoch, *epoch, ("on_end", 0), ("on_result", 1)]


def test_the_config_comes_first_and_the_result_last():
    class All(Tracker):
        def on_config(self, config):
            self.seen = [config["rule"]["name"]]

        def on_start(self, trainer):
            self.seen.append(trainer.progress.step)

        def on_result(self, result):
            self.seen.append(result["test"]["accuracy"])

    tracker = All()
    run = bpfree.fit("mlp", "digits", "fa", epochs=1, trackers=[tracker])
    assert tracker.seen == ["fa", 0, run.result["test"]["accuracy"]]


def test_what_a_function_adds_to_an_epoch_is_recorded(tmp_path):
    run = bpfree.fit(
        "mlp",
        "digits",
        epochs=2,
        out=tmp_path / "run",
        trackers=[Callback(on_epoch=lambda trainer, record: record.update(square=record["epoch"] ** 2))],
    )
    assert [record["square"] for record in run.metrics] == [1, 4]
    assert [record["square"] for record in bpfree.load(tmp_path / "run").metrics] == [1, 4]


@pytest.mark.parametrize("name", [name for name in vars(Listener) if name.startswith("on_")])
def test_every_method_of_a_tracker_has_its_place_in_the_list_of_names(name):
    from bpfree.trackers import OTHER_NAMES

    ours = {"on_config", "on_interrupt", "on_diverged", "on_result"}  # the others have nothing like it
    assert name in {*OTHER_NAMES.values(), *ours}


def test_names_of_others_are_refused_where_they_would_never_be_called():
    with pytest.raises(UserError, match=r"Mine.on_epoch_end: bpfree never calls it. Its name here is on_epoch;"):

        class Mine(Tracker):
            def on_epoch_end(self, epoch, logs):
                pass

    class Both(Tracker):  # one that serves two libraries
        def on_epoch_end(self, epoch, logs):
            pass

        def on_epoch(self, trainer, record):
            pass


class Keras:
    def on_epoch_end(self, epoch, logs=None):
        pass


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (
            [Keras()],
            r"trackers: found Keras, allowed: a name, a spec, or a bpfree.Tracker. .* \(on_epoch_end is on_epoch\)",
        ),
        ([Keras], "trackers: found Keras, allowed"),
        ([print], "trackers: found print, allowed"),
        ([Callback], r"trackers: found the class Callback, allowed: an object, Callback\(...\)"),
        ("cost", r"trackers: found 'cost', allowed: a list, \['cost'\]"),
    ],
)
def test_what_is_not_a_tracker(found, message):
    with pytest.raises(UserError, match=message):
        bpfree.fit("mlp", "digits", trackers=found)


def test_other_mistakes():
    with pytest.raises(UserError, match=r"Callback.on_epoch: found int, allowed: a function"):
        Callback(on_epoch=3)
    with pytest.raises(UserError, match="unknown argument callbacks. Its name is trackers"):
        bpfree.fit("mlp", "digits", callbacks=[])
