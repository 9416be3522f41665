"""Ctrl-C that waits for a moment at which it does no harm, and is never lost."""

import signal

import pytest

from bpfree.training.interrupt import interrupt_at_the_end, interrupt_between_steps


def press():
    signal.raise_signal(signal.SIGINT)


def test_the_block_learns_of_ctrl_c_and_goes_on():
    before = signal.getsignal(signal.SIGINT)
    with interrupt_between_steps() as interrupted:
        assert not interrupted()
        press()
        assert interrupted()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_interrupts_at_once():
    after = []

    def twice():
        with interrupt_between_steps():
            press()
            press()
            after.append("reached")

    with pytest.raises(KeyboardInterrupt):
        twice()
    assert not after


@pytest.mark.parametrize("context", [interrupt_between_steps, interrupt_at_the_end])
def test_ctrl_c_that_the_block_did_not_ask_about_interrupts_at_its_end(context):
    done, before = [], signal.getsignal(signal.SIGINT)

    def once():
        with context():
            press()
            done.append("the rest of the block")

    with pytest.raises(KeyboardInterrupt):
        once()
    assert done
    assert signal.getsignal(signal.SIGINT) is before


def test_sigterm_counts_where_torchrun_may_send_it():
    before = signal.getsignal(signal.SIGTERM)
    with interrupt_between_steps(by_sigterm=True) as interrupted:
        signal.raise_signal(signal.SIGTERM)
        assert interrupted()
    assert signal.getsignal(signal.SIGTERM) is before
