"""The reprs say what an object is in a line or a few; that of a rule, task or tracker is its constructor call."""

import collections.abc
import copy
import inspect
import pickle
from html.parser import HTMLParser
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from torch import nn

import bpfree
from bpfree.data.labels import Labels
from bpfree.diffusion import NoiseLevels
from bpfree.population.rule import Running
from bpfree.rules import RULES
from bpfree.spec import check_options, shared_options
from bpfree.tasks import Classify, Multilabel, Reconstruct, Regress, Segment, Sequence
from bpfree.trackers import MEASURES
from tests.helpers import bound, net_for


def annotations(cls):
    """The options of a constructor with their types and defaults, and those of `**options`."""
    hints = get_type_hints(cls.__init__)
    options: dict[str, tuple[Any, Any]] = {}
    for parameter in inspect.signature(cls).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            options |= {name: (hint, None) for name, hint in (shared_options(hints.get(parameter.name)) or {}).items()}
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            options[parameter.name] = (hints[parameter.name], parameter.default)
    return options


def others(hint, default):
    """Plain values of a type that may be allowed and differ from the default."""
    hints = (hint, *get_args(hint), *(inner for each in get_args(hint) for inner in get_args(each)))
    for each in hints:
        if get_origin(each) is Literal:
            yield from (value for value in get_args(each) if value != default)
        elif each is bool:
            yield not default
        elif each is int:
            yield from (number for number in (4, 1, 64) if number != default)
        elif each is float:
            yield from (0.25, 0.75, 3.0)
        elif each is str:
            yield from ("layer1", "orthogonal", "linear", "learned", "predsim")
        elif get_origin(each) is collections.abc.Sequence and get_args(each) == (float,):
            yield [0.25, 0.75]
        elif isinstance(each, type) and issubclass(each, NoiseLevels):
            yield {"sigma_max": 10.0}
        elif get_origin(each) is list or each is list:
            yield ["1", "3"]


def changed(cls):
    """Each option of a rule with a value that its constructor accepts and that is not the default."""
    for name, (hint, default) in annotations(cls).items():
        for value in others(hint, default):
            try:
                cls(**{name: value})
            except bpfree.UserError:
                continue
            yield name, value
            break


@pytest.mark.parametrize("name", RULES)
def test_the_repr_of_a_rule_is_the_call_that_makes_it(name):
    cls = RULES[name]
    assert repr(cls()) == f"{cls.__name__}()"
    defaults = {key: value for key, (_, value) in annotations(cls).items() if key not in Running.__annotations__}
    assert repr(cls(**check_options(cls, defaults, "rule"))) == f"{cls.__name__}()", "no option differs"
    options = dict(changed(cls))
    assert set(annotations(cls)) - set(options) <= {"objective", "maximize"}, "all but those that need each other"
    for option, value in options.items():
        rule = cls(**{option: value})
        assert f"{option}=" in repr(rule)
        again = eval(repr(rule), {cls.__name__: cls})
        assert (type(again), repr(again)) == (cls, repr(rule))
        plain = {key: each for key, each in vars(rule).items() if isinstance(each, bool | int | float | str)}
        assert {key: vars(again)[key] for key in plain} == plain
        assert repr(copy.deepcopy(rule)) == repr(pickle.loads(pickle.dumps(rule))) == repr(rule)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_that_is_bound_shows_the_same(name, batch):
    rule = RULES[name]()
    assert repr(bound(rule, net_for(name), batch)) == repr(RULES[name]())


def test_a_rule_of_the_users():
    class Mine(bpfree.LocalRule):
        def __init__(self, beta=1.0, taps=None):
            super().__init__(taps=taps)

        def local_loss(self, index, h, signal):
            return h.mean()

    class Below(Mine):
        pass

    assert [repr(rule) for rule in (Mine(), Mine(2.0), Mine(beta=2.0, taps=["0"]), Below(beta=1.0))] == [
        "Mine()",
        "Mine(2.0)",
        "Mine(beta=2.0, taps=['0'])",
        "Below()",
    ]


def test_tasks_and_trackers():
    tasks = {
        "Classify(10)": Classify(10),
        "Classify(3, label_smoothing=0.1)": Classify(3, label_smoothing=0.1),
        "Multilabel(4, positive_weights=[1.0, 2.0, 3.0, 4.0])": Multilabel(4, positive_weights=[1.0, 2.0, 3.0, 4.0]),
        "Segment(3, (8, 8))": Segment(3, (8, 8)),
        "Reconstruct([1, 8, 8], output='tanh')": Reconstruct([1, 8, 8], output="tanh"),
        "Regress((0.5,), (2.0,), loss='huber')": Regress((0.5,), (2.0,), loss="huber"),
        "Sequence(3, warmup=5)": Sequence(3, warmup=5),
    }
    assert [repr(task) for task in tasks.values()] == list(tasks)
    for text, task in tasks.items():
        assert repr(eval(text, {type(task).__name__: type(task)})) == text
    for cls in MEASURES.values():
        assert repr(cls()) == f"{cls.__name__}()"
        assert repr(cls(every=7)) == f"{cls.__name__}(every=7)"


def test_data_sets(digits_data):
    shown = "Dataset('digits', train: 1,437, test: 360, samples [1, 8, 8], labels: 10 classes)"
    assert repr(digits_data) == shown
    numbers = bpfree.data.Split(torch.zeros(6, 2), torch.zeros(6, 3))
    data = bpfree.data.Dataset("mine", numbers, None, Labels(0))
    assert repr(data) == "Dataset('mine', train: 6, samples [2], labels: numbers [3])"


class Cells(HTMLParser):
    """The texts of the cells of a table, and the tags."""

    def __init__(self, html):
        super().__init__()
        self.texts, self.tags = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.texts.append(data)


def test_a_run_and_its_trainer(tmp_path, undrawn):
    run = bpfree.fit("mlp", "digits", {"name": "dfa", "feedback": "orthogonal"}, epochs=1, out=tmp_path / "<run>")
    parameters = sum(p.numel() for p in run.net.parameters())
    title, *lines = repr(run).splitlines()
    shown = {line.split()[0]: line.strip().partition(" ")[2].strip() for line in lines}
    assert title == "Run"
    assert shown["rule"] == "DFA(feedback='orthogonal')"
    assert shown["net"] == f"mlp, {parameters:,} parameters"
    assert shown["task"] == "Classify(10)"
    assert shown["data"] == "digits, samples of shape [1, 8, 8]"
    assert shown["training"] == f"1 of 1 epochs on cpu in {run.trainer.precision}, seed 0"
    assert shown["test"] == f"accuracy {run.result['test']['accuracy']:.4f}, loss {run.result['test']['loss']:.4f}"
    assert shown["cost"].startswith(f"{run.result['wall_seconds']:.1f} s")
    assert shown["folder"] == str(run.folder)
    cells = Cells(run._repr_html_())
    assert cells.texts == [text for fact in shown.items() for text in fact], "escaped, so that it is read as text"
    assert set(cells.tags) == {"table", "tr", "th", "td"}
    steps = run.trainer.progress.step
    net = f"Sequential of {parameters:,} parameters"
    assert repr(run.trainer) == f"Trainer({net}, DFA(feedback='orthogonal'), Classify(10), cpu, {steps} steps)"
    assert repr(bpfree.load(run.folder)) == repr(run)


def test_a_net_of_the_users(batch):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    run = bpfree.fit(net, (batch.x.float().numpy(), batch.y.numpy()), "backprop", epochs=1)
    assert "net      Sequential, 650 parameters" in repr(run)
    assert "folder" not in repr(run)
