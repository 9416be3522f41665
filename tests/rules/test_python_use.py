"""Rules as objects of Python: their options, their copies and pickles."""

import copy
import inspect
import io
import typing
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from bpfree import Noise, Trainer, UserError
from bpfree.rules import ES, PGPE, RULES, SNES
from bpfree.spec import shared_options
from tests.helpers import TASK, bound, gradients, net_for, same, zero_grad

ILL_TYPED = [object(), "nonsense", -1, {"a": 1}, float("nan"), torch.zeros(2)]


def options_of(kind):
    names = []
    for parameter in inspect.signature(kind).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            names += shared_options(typing.get_type_hints(kind.__init__)[parameter.name])
        else:
            names.append(parameter.name)
    return names


@pytest.mark.parametrize("name", RULES)
def test_options_that_cannot_be_are_named(name):
    with pytest.raises(UserError, match="nonsense"):
        RULES[name](nonsense=1)
    for option in options_of(RULES[name]):
        for value in ILL_TYPED:
            try:
                RULES[name](**{option: value})
            except UserError as error:
                assert option in str(error) or option == "pairs"  # noqa: PT017, some values are allowed


def test_an_option_that_the_rule_fixes_is_refused():
    with pytest.raises(UserError, match="unknown key 'PGPE.mirrored'"):
        PGPE(mirrored=True)
    with pytest.raises(UserError, match="ES.population: found 'many', allowed: int"):
        ES(population="many")


def test_numbers_of_numpy_are_numbers():
    rule = ES(population=np.int64(4), sigma=np.float64(0.1))
    assert (len(rule.members), rule.sigma) == (4, 0.1)


def stepped(name, batch):
    net = net_for(name, batch.x.device)
    options = {"evaluator": "loop"} if "evaluator" in options_of(RULES[name]) and name != "spsa" else {}
    rule = bound(RULES[name](**options), net, batch)
    rule.gradients(net, TASK, batch, Noise(0, 0))
    return net, rule


def pickled(rule):
    file = io.BytesIO()
    torch.save(rule, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("way", [pickled, copy.deepcopy])
@pytest.mark.parametrize("name", RULES)
def test_a_copy_of_a_trained_rule_takes_the_same_next_step(name, way, batch):
    net, rule = stepped(name, batch)
    again = way(rule)
    steps = []
    for this in (rule, again):
        model = copy.deepcopy(net)
        zero_grad(model, this)
        this.gradients(model, TASK, batch, Noise(0, 1))
        steps.append(gradients(model, this))
    assert steps[0]
    assert same(*steps)
    assert same(dict(rule.state_dict()), dict(again.state_dict()))


@pytest.mark.parametrize("kind", [SNES, PGPE])
@pytest.mark.parametrize("optimizer", ["own", "adam", "none"])
def test_sigmas_do_not_depend_on_the_optimiser(kind, optimizer, batch):
    """The loop of those who write their own, with whatever optimiser; weights are kept, so that scores are the same."""
    sigmas = []
    for make in (None, optimizer):
        net = net_for("es", batch.x.device)
        rule = bound(kind(evaluator="loop", population=8), net, batch)
        parameters = [*net.parameters(), *rule.parameters()]
        if make == "own":
            stepper = torch.optim.SGD(parameters, lr=0.0)
        elif make == "adam":
            stepper = torch.optim.Adam(rule.optimizer_groups(net), lr=0.0)
        for step in range(3):
            net.zero_grad()
            rule.gradients(net, TASK, batch, Noise(0, step))
            if make in ("own", "adam"):
                stepper.step()
        sigmas.append(torch.cat([sigma.flatten() for sigma in rule.sigmas]))
    assert torch.equal(*sigmas)
    assert 0.005 < float(sigmas[0].min()) < float(sigmas[0].max()) < 0.05


@pytest.mark.parametrize("kind", [SNES, PGPE])
def test_a_step_asked_for_twice_is_the_same_step(kind, batch):
    net = net_for("es", batch.x.device)
    rule = bound(kind(evaluator="loop", population=8), net, batch)
    found = []
    for step in (0, 0, 1, -1, 1):
        zero_grad(net)
        rule.gradients(net, TASK, batch, Noise(0, step))
        found.append(gradients(net))
    assert same(found[0], found[1])
    assert same(found[2], found[4])


def test_an_adaptive_rule_says_that_it_is_not_bound(batch):
    with pytest.raises(UserError, match="SNES: not bound to a net. Call rule.bind"):
        SNES().gradients(net_for("es", batch.x.device), TASK, batch, Noise(0, 0))


def test_an_optimiser_that_ignores_the_rules_groups_is_refused(batch):
    """Learned label embeddings have a weight decay of their own."""

    class Apart(ES):
        def optimizer_groups(self, net):
            last, rest = list(net.parameters())[-1:], list(net.parameters())[:-1]
            return [{"params": rest}, {"params": last, "weight_decay": 0.0}]

    for groups, allowed in ((None, False), (Apart().optimizer_groups, True)):
        net = net_for("es", batch.x.device)
        optimizer = torch.optim.SGD(groups(net) if groups else net.parameters(), lr=0.1, weight_decay=0.1)
        trainer = Trainer(net, Apart(evaluator="loop", population=4), TASK, optimizer)
        with nullcontext() if allowed else pytest.raises(UserError, match="the rule wants weight_decay 0.0 for them"):
            trainer.step(batch)
