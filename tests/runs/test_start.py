"""A net that starts with the weights of a run."""

import pytest

import bpfree
from bpfree import UserError
from tests.helpers import same, without_pictures

NET = {"name": "mlp", "hidden": [12]}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    with without_pictures():
        return bpfree.fit(NET, "digits", "backprop", epochs=1, out=tmp_path_factory.mktemp("first") / "run")


def test_a_run_goes_on_from_the_weights_of_another(first):
    """With a rate of 0 nothing moves, so the weights are those of the other run."""
    still = {"name": "sgd", "lr": 1e-30}
    run = bpfree.fit(NET, "digits", "dfa", epochs=1, optimizer=still, seed=5, start_from=str(first.folder))
    assert same(run.net.state_dict(), first.net.state_dict())
    fresh = bpfree.fit(NET, "digits", "dfa", epochs=1, optimizer=still, seed=5)
    assert not same(fresh.net.state_dict(), first.net.state_dict())


def test_a_resumed_run_needs_the_first_run_no_more(first, tmp_path):
    out = tmp_path / "second"
    options = {"epochs": 2, "out": out, "start_from": str(first.folder)}
    with without_pictures():
        whole = bpfree.fit(NET, "digits", "dfa", **{**options, "out": tmp_path / "whole"})

        class Stop(bpfree.trackers.Tracker):
            def on_epoch(self, trainer, record):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            bpfree.fit(NET, "digits", "dfa", trackers=[Stop()], **options)
        resumed = bpfree.fit(NET, "digits", "dfa", resume=True, **{**options, "start_from": "nowhere"})
    assert same(resumed.net.state_dict(), whole.net.state_dict())


def test_what_does_not_fit_is_refused(first, tmp_path):
    with pytest.raises(UserError, match=r"train.start_from: found .*, whose net has other weights"):
        bpfree.fit({"name": "mlp", "hidden": [13]}, "digits", start_from=str(first.folder))
    with pytest.raises(UserError, match="no checkpoint"):
        bpfree.fit(NET, "digits", start_from=str(tmp_path))
