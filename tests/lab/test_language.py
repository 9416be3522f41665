"""Certificates and comparisons of nets that predict the next token of a text."""

import pytest
import torch

import bpfree
from bpfree.nets import NETS
from bpfree.tasks import Language
from bpfree.types import Batch

SLOW = [pytest.param("dfa", "part", marks=pytest.mark.slow), pytest.param("backprop", "net", marks=pytest.mark.slow)]


@pytest.mark.parametrize(("rule", "through"), [("mono_forward", "part"), *SLOW])
def test_a_transformer_of_language_is_as_local_as_declared(rule, through):
    torch.manual_seed(0)
    net = NETS["transformer"]((8,), 20, width=16, depth=4, heads=2, each_step=True)
    x = torch.randint(20, (8, 9))
    found = bpfree.certify(net, rule, Language(20), Batch(x[:, :-1], x[:, 1:]))
    assert found.measured.through == through
    assert found.ok, found.violations


@pytest.mark.slow
def test_rules_are_compared_on_a_text(tmp_path):
    (tmp_path / "poem.txt").write_text("Warte nur, balde ruhest du auch.\n" * 40)
    data = {"name": "text", "path": str(tmp_path / "poem.txt"), "dir": str(tmp_path), "context": 8}
    net = {"name": "transformer", "width": 16, "depth": 2, "heads": 2, "each_step": True, "vocabulary": 256}
    options = {"task": "language", "epochs": 1, "out": tmp_path / "report"}
    done = bpfree.compare(net, data, rules=["mono_forward", "dfa"], seeds=1, **options)
    assert done.page.is_file()
    assert not done.failed
    text = (tmp_path / "report" / "compare.json").read_text()
    assert all(f'"{rule}"' in text for rule in ("mono_forward", "dfa", "backprop"))
