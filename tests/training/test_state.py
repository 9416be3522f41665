"""`Trainer.state_dict`, and arguments of a trainer that are refused. tests/rules/test_contract.py has every rule."""

import copy

import pytest
import torch
from torch import nn

from bpfree import Batch, Trainer, UserError
from bpfree.data import Batches, Preprocess, Split
from bpfree.nets import NETS
from bpfree.tasks import Classify
from bpfree.training.optim import OPTIMIZERS, SCHEDULES
from tests.helpers import same

TASK = Classify(3)
X, Y = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3


def small(width=8):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Dropout(0.3), nn.Linear(width, 3))


def trainer(rule="mono_forward", width=8, **options):
    return Trainer(small(width), rule, TASK, **options)


def steps(trained, count):
    for _ in range(count):
        trained.step((X, Y))
    return trained


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_any_optimizer_and_schedule_go_on_from_a_file(optimizer, schedule, tmp_path):
    options = {"optimizer": optimizer, "schedule": {"name": schedule, "total_steps": 5}}
    whole, first, second = (trainer(**options) for _ in range(3))
    steps(whole, 5)
    torch.save(steps(first, 2).state_dict(), tmp_path / "state.pt")
    second.bind(Batch(X, Y))
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    steps(second, 3)
    assert same(second.net.state_dict(), whole.net.state_dict())
    assert second.progress.step == 5


def test_fit_goes_on_from_a_state_within_an_epoch(digits_data):
    split = Split(digits_data.train.x[:192], digits_data.train.y[:192])
    batches = Batches(split, Preprocess.of(digits_data, split), 32, seed=3)

    def fresh():
        torch.manual_seed(0)
        net = NETS["mlp"]((1, 8, 8), 10, hidden=[16], dropout=0.2)
        return Trainer(net, "dfa", Classify(10), schedule={"name": "cosine", "total_steps": 18})

    whole, first, second = fresh(), fresh(), fresh()
    whole.fit(batches, 3)
    for batch in [*batches.epoch(0), *batches.epoch(1)][:8]:  # an epoch has 6 steps
        first.step(batch)
    second.bind(batch)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    second.fit(batches, 3)
    assert second.progress.step == whole.progress.step == 18
    assert same(second.net.state_dict(), whole.net.state_dict())


def test_the_state_of_another_training_is_refused_and_nothing_crashes():
    state = copy.deepcopy(steps(trainer(), 2).state_dict())
    for wrong, message in (
        (trainer(width=9), "size mismatch"),
        (trainer("backprop"), "Unexpected key"),
        (trainer(optimizer="sgd"), "the optimiser has the options"),
    ):
        wrong.bind(Batch(X, Y))
        with pytest.raises(UserError, match=f"state: .*{message}"):
            wrong.load_state_dict(state)
    right = trainer()
    with pytest.raises(UserError, match=r"Call trainer.bind\(batch\) first"):
        right.load_state_dict(state)
    right.bind(Batch(X, Y))
    with pytest.raises(UserError, match="allowed: what trainer.state_dict"):
        right.load_state_dict(state["net"])
    state["optimizer"]["state"][0]["exp_avg"] = torch.zeros(2)
    with pytest.raises(UserError, match=r"exp_avg of parameter 0 has the shape \[2\]"):
        right.load_state_dict(state)


def test_a_trainer_without_a_first_step_has_no_state():
    with pytest.raises(UserError, match=r"Call trainer.bind\(batch\) first"):
        trainer().state_dict()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "classify"}, r"task: found 'classify', allowed: .* bpfree.tasks.Classify\(10\) for 10 classes"),
        ({"task": Classify}, "task: found the class Classify, allowed: an object of it"),
        ({"task": nn.CrossEntropyLoss()}, r"task: found the function CrossEntropyLoss, allowed: .*use_loss\(loss\)"),
        ({"task": nn.functional.cross_entropy}, "task: found the function cross_entropy"),
        ({"task": 10}, "task: found int without dim, target, loss, metrics"),
        ({"optimizer": torch.optim.SGD}, "optimizer: found the class SGD"),
    ],
)
def test_arguments_that_look_right_are_refused_with_the_cure(options, message):
    with pytest.raises(UserError, match=message):
        Trainer(small(), "dfa", **{"task": TASK, **options})


def test_a_scheduler_of_torch_is_refused_and_its_cure_works():
    net = small()
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    with pytest.raises(UserError, match="schedule: found a StepLR, allowed"):
        Trainer(net, "dfa", TASK, optimizer, schedule=scheduler)
    trained = Trainer(net, "dfa", TASK, optimizer)
    rates = []
    for _ in range(3):
        trained.step((X, Y))
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step()
    assert rates == [1.0, 0.5, 0.25]


def test_the_cure_for_a_loss_of_ones_own_works():
    task = Classify(3)
    task.use_loss(nn.CrossEntropyLoss(label_smoothing=0.1))
    assert bool(steps(Trainer(small(), "mono_forward", task), 1).step((X, Y))["loss"].isfinite())
