"""Shipped configs reach what they are shipped for: on digits always, on MNIST with -m slow where the data are."""

import pytest

from bpfree.data import data_directory
from bpfree.runs.config_file import load_config
from bpfree.runs.train import train

DIGITS = {
    "backprop": 0.96,
    "dfa": 0.96,
    "mono_forward": 0.96,
    "forward_forward": 0.96,
    "cwcomp": 0.96,
    "pepita": 0.95,
    "noprop_dt": 0.96,
    "recombine": 0.88,
}
SLOW = ("forward_forward", "cwcomp", "pepita", "recombine")  # test_contract.py shows in less time that they learn
MNIST = {
    "fa": 0.983,
    "dfa": 0.983,
    "mono_forward": 0.984,
    "forward_forward": 0.985,
    "cwcomp": 0.98,
    "pepita": 0.975,
    "noprop_dt": 0.993,
    "recombine": 0.85,
}


@pytest.mark.parametrize("rule", [pytest.param(rule, marks=[pytest.mark.slow] * (rule in SLOW)) for rule in DIGITS])
def test_digits(rule):
    result = train(load_config(f"digits/{rule}")).result
    assert result["test"]["accuracy"] >= DIGITS[rule]


@pytest.mark.slow
@pytest.mark.parametrize("rule", MNIST)
def test_mnist(rule):
    if not (data_directory() / "mnist").is_dir():
        pytest.skip("no MNIST in the data directory; set BPFREE_DATA")
    assert train(load_config(f"mnist/{rule}")).result["test"]["accuracy"] >= MNIST[rule]
