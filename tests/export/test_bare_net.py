"""The warning for users who call the net of a run where the rule predicts in another way."""

import copy
import warnings

import pytest
import torch

import bpfree
from tests.export.trainings import samples, trained


def inputs(run):
    return run.preprocess(samples("classify")[0][:4])


def test_a_call_warns_once_and_names_the_line():
    run = bpfree.fit("mlp", samples("classify"), "forward_forward", epochs=1)
    x = inputs(run)
    with pytest.warns(UserWarning, match="ForwardForward predicts in another way") as caught:
        run.net(x)
    assert caught[0].filename == __file__
    run.net(x)
    assert not run.net._forward_pre_hooks


def test_bpfree_itself_may_call_the_net_after_it_was_read(tmp_path):
    run = bpfree.fit("mlp", samples("classify"), "forward_forward", epochs=1)
    assert run.net is run.trainer.net
    run.predict(samples("classify")[0])
    run.evaluate(samples("classify"))
    run.trainer.step((inputs(run), samples("classify")[1][:4]))
    run.save(tmp_path / "run")
    with pytest.warns(UserWarning, match="predicts in another way"):
        run.net(inputs(run))


def test_reading_weights_and_copies_do_not_warn():
    run = trained("noprop_dt")
    before = run.net.state_dict()
    again = copy.deepcopy(run.net)
    again.load_state_dict(before)
    assert not run.as_module().net._forward_pre_hooks


def test_a_rule_that_predicts_by_the_net_does_not_warn():
    run = trained("dfa")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = run.net.eval()(inputs(run))
    assert torch.equal(out.softmax(1), run.predict_proba(samples("classify")[0][:4]))


def test_another_rule_that_trains_the_net_further_takes_the_warning_away():
    first = bpfree.fit("mlp", samples("classify"), "forward_forward", epochs=1)
    second = bpfree.fit(first.net, samples("classify"), "backprop", epochs=1)
    assert not second.net._forward_pre_hooks
