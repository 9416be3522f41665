"""A run as one module: the numbers of the run to the bit, for every rule and task, without the run."""

import copy
import gc
import re
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

import bpfree
from bpfree import UserError
from bpfree.rules import RULES
from tests.export.trainings import ABLE, answers, samples, trained

OPTIONS = [
    ("mono_forward", ("read", "last")),
    ("mono_forward", ("read", "sum")),
    ("cwcomp", ("read", "last")),
    ("cwcomp", ("read", "sum")),
    ("noprop_dt", ("decode", "nearest")),
    ("noprop_dt", ("inference", "stochastic")),
    ("noprop_ct", ("solver", "heun")),
    ("noprop_ct", ("solver", "dopri5")),
    ("noprop_fm", ("inference", "stochastic")),
    ("deep_supervision", ("rule", "mono_forward")),
]


QUICK = [  # every rule, and every task by rules that read it in different ways; the others are slow
    (rule, task)
    for rule, task in ABLE
    if task == "classify" or rule in ("backprop", "mono_forward", "cwcomp", "noprop_dt", "noprop_fm")
]
SOME = [pytest.param(*pair, marks=() if pair in QUICK else pytest.mark.slow) for pair in ABLE]


@pytest.mark.parametrize(("rule", "task"), SOME)
def test_it_gives_the_numbers_of_the_run_to_the_bit(rule, task):
    run, x = trained(rule, task), samples(task)[0]
    module = run.as_module()
    for n in (1, 3, 64):
        assert torch.equal(module(x[:n]), answers(run, x[:n]))
    assert module.output == {"regress": "values", "sequence": "values", "reconstruct": "rebuilt"}.get(
        task, "probabilities"
    )


@pytest.mark.parametrize(("rule", "option"), OPTIONS, ids=str)
def test_options_of_inference(rule, option):
    run, x = trained(rule, option=option), samples("classify")[0]
    assert torch.equal(run.as_module()(x), run.predict_proba(x))


@pytest.mark.parametrize("rule", ["backprop", "forward_forward", "noprop_dt", "softhebb"])
def test_maps_in_channels_last_order_and_convolutions(rule):
    run, x = trained(rule, kind="conv"), samples("classify")[0]
    assert torch.equal(run.as_module()(x), run.predict_proba(x))


def test_a_readout_by_ridge_regression():
    x, y = samples("classify")
    run = bpfree.fit("mlp", (x, y), "dfa", epochs=1, readout="ridge")
    assert torch.equal(run.as_module()(x), run.predict_proba(x))


@pytest.mark.parametrize("precision", ["float32_torch", "bfloat16"])
def test_the_arithmetic_of_the_run(precision):
    x, y = samples("classify")
    run = bpfree.fit("mlp", (x, y), "mono_forward", epochs=1, precision=precision)
    assert torch.equal(run.as_module()(x), run.predict_proba(x))


class Two(nn.Module):
    """A net of tokens and numbers, which are masked."""

    def __init__(self):
        super().__init__()
        self.words, self.numbers, self.out = nn.Embedding(9, 4), nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, tokens, numbers, mask):
        words = self.words(tokens) * mask.unsqueeze(-1)
        return self.out((words.sum(1) + self.numbers(numbers)).relu())


def several(n=40):
    draws = torch.Generator().manual_seed(0)
    inputs = {
        "tokens": torch.randint(0, 9, (n, 5), generator=draws),
        "numbers": torch.randint(0, 256, (n, 3), generator=draws, dtype=torch.uint8),
        "mask": torch.rand(n, 5, generator=draws) < 0.7,
    }
    return inputs, torch.randint(0, 2, (n,), generator=draws)


def test_several_inputs_by_name():
    x, y = several()
    run = bpfree.fit(Two(), (x, y), "backprop", epochs=1, batch_size=8)
    module, expected = run.as_module(), run.predict_proba(x)
    assert torch.equal(module(**x), expected)
    assert torch.equal(module(dict(reversed(x.items()))), expected)
    assert repr(module).startswith("Predictor(\n  tokens, numbers, mask -> probabilities")
    for wrong in (lambda: module(x["tokens"]), lambda: module(tokens=x["tokens"]), lambda: module(*x.values())):
        with pytest.raises(UserError, match="allowed: tokens, numbers, mask by name, as in training"):
            wrong()


def test_several_inputs_in_a_row():
    x, y = several()
    run = bpfree.fit(Two(), (tuple(x.values()), y), "backprop", epochs=1, batch_size=8)
    module, expected = run.as_module(), run.predict_proba(tuple(x.values()))
    assert torch.equal(module(*x.values()), expected)
    assert torch.equal(module(tuple(x.values())), expected)
    with pytest.raises(UserError, match="found the inputs 2, allowed: 3 of them"):
        module(x["tokens"], x["mask"])


def test_rows_of_a_table(tmp_path):
    """The numbers of a column may be too large for float32, such as times in seconds."""
    rows = [f"{1_700_000_000 + 7 * i},{'red' if i % 3 else 'blue'},{i % 2}" for i in range(60)]
    (tmp_path / "table.csv").write_text("\n".join(["time,colour,label", *rows]) + "\n")
    data = {"name": "table", "path": str(tmp_path / "table.csv"), "label": "label"}
    run = bpfree.fit("mlp", data, "dfa", epochs=1)
    x = run.test.x
    assert x.dtype == torch.float64
    assert torch.equal(run.as_module()(x), run.predict_proba(x))


def test_it_stays_as_it_is_while_the_run_goes_on():
    x, y = samples("classify")
    run = bpfree.fit("mlp", (x, y), "mono_forward", epochs=1)
    module = run.as_module()
    before = module(x)
    with torch.no_grad():
        for p in run.trainer.net.parameters():
            p.add_(1)
    assert torch.equal(module(x), before)
    assert not torch.equal(run.predict_proba(x), before)


def test_it_does_not_hold_the_trainer():
    x, y = samples("classify")
    run = bpfree.fit("mlp", (x, y), "mono_forward", epochs=1, update="fused")
    module = run.as_module()
    trainer, net = weakref.ref(run.trainer), weakref.ref(run.trainer.net)
    del run
    gc.collect()
    assert trainer() is None
    assert net() is None
    assert module(x).shape == (len(x), 3)


@pytest.mark.parametrize("rule", ["backprop", "noprop_ct", "forward_forward"])
def test_its_state_is_that_of_a_module(rule):
    """Another run's module becomes the same by `load_state_dict`, so everything that learns is in the state."""
    run, x = trained(rule), samples("classify")[0]
    module = run.as_module()
    other = copy.deepcopy(module)
    for tensor in other.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(0.1)
    assert not torch.equal(other(x), module(x))
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(x), module(x))
    nn.Sequential(module).train()
    assert not any(part.training for part in module.modules())
    doubled = other.to(torch.float64)
    torch.testing.assert_close(doubled(x), module(x), rtol=1e-4, atol=1e-4)
    assert all(t.dtype == torch.float64 for t in doubled.state_dict().values() if t.is_floating_point())


def test_samples_of_another_form_are_refused():
    module = trained("backprop").as_module()
    with pytest.raises(UserError, match=r"samples have the shape \[8, 8\], allowed: \[1, 8, 8\], as in training"):
        module(torch.zeros(2, 8, 8))
    x, y = several()
    tokens = bpfree.fit(nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(20, 2)), (x["tokens"], y), "backprop")
    with pytest.raises(UserError, match=r"samples are torch.float32, allowed: integers"):
        tokens.as_module()(torch.zeros(2, 5))


def test_the_python_of_the_page_runs(capsys):
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(block, "export.md", "exec"), {})
    first, second = re.findall(r"tensor\((.*?)\)", capsys.readouterr().out)
    assert first == second


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_with_convolutions(rule):
    run, x = trained(rule, kind="conv"), samples("classify")[0]
    assert torch.equal(run.as_module()(x), run.predict_proba(x))
