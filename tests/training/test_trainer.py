import copy

import pytest
import torch
from torch import nn

import bpfree
from bpfree import DivergedError, EarlyStopping, Noise, Trainer, UserError
from bpfree.data import Batches, Preprocess, Split
from bpfree.nets import NETS
from bpfree.rules import RULES, Backprop, MonoForward
from bpfree.spec import split_spec
from bpfree.trackers import Tracker
from bpfree.training.compute import Compute
from bpfree.training.optim import make_optimizer
from bpfree.types import Batch
from tests.helpers import IN_SHAPE, TASK, same


def net32(**options):
    torch.manual_seed(0)
    return NETS["mlp"](IN_SHAPE, 10, hidden=[16, 16], **options)


def batches(digits_data, n=320, seed=0):
    split = digits_data.train.take(torch.arange(n))
    return Batches(split, Preprocess.of(digits_data, split), 32, seed=seed)


@pytest.fixture
def batch32(digits_data):
    return next(batches(digits_data).epoch())


def test_bare_use_is_what_the_trainer_does(batch32):
    """bind, gradients and the user's own optimiser come to the trainer's weights."""
    net, other = net32(), net32()
    trainer = Trainer(net, "mono_forward", TASK, {"name": "adam", "lr": 0.01})
    rule = RULES["mono_forward"]()
    with Noise(0).fold("bind").global_rng():
        rule.bind(other, TASK, batch32)
    optimizer = torch.optim.Adam([*other.parameters(), *rule.parameters()], lr=0.01, fused=True)
    for step in range(3):
        trainer.step(batch32)
        optimizer.zero_grad()
        with bpfree.fast_float32():
            rule.gradients(other, TASK, batch32, Noise(0, step))
        optimizer.step()
    assert same(net.state_dict(), other.state_dict())


def test_an_optimiser_of_the_users_own_learns_of_the_rules_parameters(batch32):
    net = net32()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    trainer = Trainer(net, MonoForward(), TASK, optimizer)
    trainer.step(batch32)
    heads = [head.weight for head in trainer.rule.heads]
    assert [id(p) for p in optimizer.param_groups[1]["params"]] == [id(p) for p in heads]
    before = heads[0].detach().clone()
    trainer.step(batch32)
    assert not torch.equal(before, heads[0])


def test_clip_is_for_each_unit_by_itself(batch32):
    net = net32()
    trainer = Trainer(net, "mono_forward", TASK, {"name": "sgd", "lr": 1.0}, clip=0.01)
    trainer.bind(batch32)
    before = [[p.detach().clone() for p in unit] for unit in trainer.rule.units(net)]
    trainer.step(batch32)
    for unit, old in zip(trainer.rule.units(net), before, strict=True):
        norm = sum(float((p.detach() - o).square().sum()) for p, o in zip(unit, old, strict=True)) ** 0.5
        assert norm == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1, 1, 1, 1]),
        ("cosine", [1, 0.8536, 0.5, 0.1464]),
        ({"name": "step", "milestones": [0.25, 0.75], "gamma": 0.1}, [1, 0.1, 0.1, 0.01]),
        ({"name": "onecycle", "pct_start": 0.5, "div_factor": 10.0}, None),
    ],
)
def test_schedules(schedule, expected, batch32):
    name, options = split_spec(schedule, "schedule")
    schedule = {"name": name, "total_steps": 4, **options}
    trainer = Trainer(net32(), "backprop", TASK, {"name": "sgd", "lr": 1.0}, schedule=schedule)
    used = []
    trainer.bind(batch32)
    for _ in range(4):
        used.append(trainer.optimizer.param_groups[0]["lr"])
        trainer.step(batch32)
    if expected is None:
        assert used[0] == pytest.approx(0.1)
        assert max(used) <= 1.0
        assert used[-1] < used[1]
    else:
        assert used == pytest.approx(expected, abs=1e-4)


def test_a_learning_rate_of_the_users_own_is_left_alone(batch32):
    net = net32()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    halve = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    trainer = Trainer(net, "mono_forward", TASK, optimizer)
    for _ in range(3):
        trainer.step(batch32)
        halve.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 / 8)


def test_a_schedule_must_know_its_length(batch32):
    with pytest.raises(UserError, match="schedule.total_steps: missing; 'cosine' must know"):
        Trainer(net32(), "dfa", TASK, schedule="cosine").step(batch32)


def test_fit_fills_in_the_length_of_the_schedule(digits_data):
    for schedule, lr in (("cosine", 0.0), ({"name": "cosine", "total_steps": 20}, 0.5)):
        trainer = Trainer(net32(), "backprop", TASK, {"name": "sgd", "lr": 1.0}, schedule=schedule)
        trainer.fit(batches(digits_data), 1)  # 10 steps
        assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(lr, abs=1e-6)
    trainer = Trainer(net32(), "backprop", TASK, schedule={"name": "cosine", "total_steps": 9})
    with pytest.raises(UserError, match="schedule.total_steps: found 9, allowed: at least 10"):
        trainer.fit(batches(digits_data), 1)


def test_what_bind_makes_says_so_when_it_is_asked_for_too_early(batch32):
    trainer = Trainer(net32(), "dfa", TASK)
    for attribute in ("optimizer", "schedule"):
        with pytest.raises(
            UserError, match=rf"trainer.{attribute}: it does not exist yet.*trainer.bind\(batch\) first"
        ):
            getattr(trainer, attribute)
    trainer.bind(batch32)
    assert trainer.optimizer.param_groups
    assert trainer.schedule.get_last_lr() == [1e-3]


def test_options_of_computing_are_a_name_a_mapping_or_an_object(batch32):
    for compute in ("bfloat16", {"precision": "bfloat16"}, Compute("bfloat16")):
        assert Trainer(net32(), "dfa", TASK, compute=compute).precision == "bfloat16"
    with pytest.raises(UserError, match=r"unknown key 'compute.updates'. Did you mean 'compute.update'\?"):
        Trainer(net32(), "dfa", TASK, compute={"updates": "fused"})
    with pytest.raises(UserError, match="compute: found 3, allowed: a precision, or a mapping"):
        Trainer(net32(), "dfa", TASK, compute=3)


def test_optimisers_are_fused_where_torch_has_it(batch32):
    for name, fused in (("adam", True), ("sgd", True), ("adamw", True), ("rmsprop", None)):
        trainer = Trainer(net32(), "backprop", TASK, name)
        trainer.step(batch32)
        assert trainer.optimizer.param_groups[0].get("fused") == fused
    trainer = Trainer(net32(), "backprop", TASK, {"name": "adam", "foreach": True})
    trainer.step(batch32)
    assert not trainer.optimizer.param_groups[0]["fused"]


def test_training_learns_and_records(digits_data):
    net = net32()
    trainer = Trainer(net, "backprop", TASK, {"name": "adam", "lr": 0.01})
    train, validation = batches(digits_data), batches(digits_data, seed=None)
    trainer.fit(train, 5, validation=validation)
    history = trainer.progress.history
    assert [r["epoch"] for r in history] == [1, 2, 3, 4, 5]
    assert [r["step"] for r in history] == [10, 20, 30, 40, 50]
    assert history[-1]["validation"] == trainer.evaluate(validation)
    assert history[-1]["validation"]["accuracy"] > 0.9
    assert trainer.progress.wall_seconds > 0
    predicted = trainer.predict(next(validation.epoch()).x)
    assert predicted.shape == (32, 10)
    assert net.training


def test_early_stopping_waits_for_its_patience(digits_data):
    trainer = Trainer(net32(), "backprop", TASK, {"name": "sgd", "lr": 1e-12})  # nothing ever improves
    data = batches(digits_data)
    trainer.fit(data, 50, validation=batches(digits_data, seed=None), early_stopping=EarlyStopping(patience=3))
    assert len(trainer.progress.history) == 4
    assert trainer.progress.best_epoch == 1
    trainer = Trainer(net32(), "backprop", TASK)
    with pytest.raises(UserError, match="early_stopping.metric: found 'f1', allowed: loss, accuracy"):
        trainer.fit(data, 1, validation=data, early_stopping=EarlyStopping("f1"))
    with pytest.raises(UserError, match="data.validation is 0"):
        trainer.fit(data, 1, early_stopping=EarlyStopping())
    assert trainer.progress.step == 0, "it fails before it trains"


def test_a_diverged_run_says_which_unit_which_step_and_what_to_try(digits_data):
    class Bomb(MonoForward):
        def local_loss(self, index, h, signal):
            self.calls = getattr(self, "calls", 0) + 1
            factor = float("nan") if self.calls == 2 * 12 + 2 else 1.0
            return super().local_loss(index, h, signal) * factor

    trainer = Trainer(net32(), Bomb(), TASK, {"name": "sgd", "lr": 0.5})
    with pytest.raises(DivergedError, match=r"loss of unit 'act2' became nan at step 13\b.*smaller optimizer.lr.*0.5"):
        trainer.fit(batches(digits_data), 5)


def test_weights_that_are_not_finite_are_caught_before_a_checkpoint(digits_data):
    class Poison(Backprop):
        def gradients(self, net, task, batch, noise):
            scalars = super().gradients(net, task, batch, noise)
            if noise.step == 9:  # the last step of the first epoch, whose loss is fine
                net.fc1.weight.grad[0, 0] = float("inf")
            return scalars

    saved = []

    class Watch(Tracker):
        def on_epoch(self, trainer, record):
            saved.append(record)

    trainer = Trainer(net32(), Poison(), TASK, "sgd")
    with pytest.raises(DivergedError, match="'fc1.weight' of the net is not finite at step 10"):
        trainer.fit(batches(digits_data), 2, trackers=[Watch()])
    assert saved == []


def test_measuring_a_step_changes_nothing(batch32):
    net = net32(batch_norm=True)
    trainer = Trainer(net, "dfa", TASK)
    trainer.step(batch32)
    before = copy.deepcopy(net.state_dict())
    assert trainer.step_memory(batch32) > sum(p.numel() * 4 for p in net.parameters())
    assert same(before, net.state_dict())
    assert all(p.grad is None for p in net.parameters())


def test_what_cannot_work_is_refused(batch32):
    with pytest.raises(UserError, match=r"unknown rule 'dfaa'. Did you mean 'dfa'\?"):
        Trainer(net32(), "dfaa", TASK)
    with pytest.raises(UserError, match="compute.precision: found 'fp8', allowed: auto, float32, float32_torch"):
        Trainer(net32(), "dfa", TASK, compute="fp8")
    with pytest.raises(UserError, match="no trainable parameters"):
        Trainer(nn.Flatten(), "dfa", TASK)
    with pytest.raises(UserError, match="clip: found -1, allowed: a number above 0"):
        Trainer(net32(), "dfa", TASK, clip=-1)
    with pytest.raises(UserError, match="optimizer adam: Invalid learning rate: -1"):
        Trainer(net32(), "dfa", TASK, {"name": "adam", "lr": -1}).step(batch32)
    with pytest.raises(UserError, match=r"optimizer.lr: found 'fast', allowed: number"):
        Trainer(net32(), "dfa", TASK, {"name": "adam", "lr": "fast"}).step(batch32)


def test_a_net_that_does_not_fit_the_data_is_explained(batch32):
    net = nn.Sequential(nn.Flatten(), nn.Linear(63, 10))
    with pytest.raises(
        UserError, match=r"failed on a batch of shape \[32, 1, 8, 8\]: mat1 and mat2.*samples of that shape"
    ):
        Trainer(net, "backprop", TASK).step(batch32)
    with pytest.raises(
        UserError, match=r"samples are torch.float32 on cpu: the net must have that dtype and be on that"
    ):
        Trainer(net32().double(), "backprop", TASK).step(batch32)
    one = Batch(batch32.x[:1], batch32.y[:1])
    with pytest.raises(UserError, match="Expected more than 1 value per channel.*batches of that size"):
        Trainer(net32(batch_norm=True), "mono_forward", TASK).step(one)


def test_tokens_stay_integers(tmp_path):
    """Integer samples other than bytes are names; an embedding takes them, under a local rule too."""

    class Text(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.mix, self.out = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.out(self.mix(self.embed(x).mean(1)).relu())

    torch.manual_seed(0)
    x = torch.randint(0, 20, (200, 5))
    y = ((x >= 10).sum(1) >= 3).long()
    run = bpfree.fit(Text(), (x, y), MonoForward(taps=["mix"]), epochs=15, optimizer={"name": "adam", "lr": 0.02})
    assert run.metrics[-1]["train"]["accuracy"] > 0.75
    with pytest.raises(UserError, match="samples are torch.float32, allowed: integers"):
        run.predict(x.float())
    run.save(tmp_path / "run")
    loaded = bpfree.load(tmp_path / "run", net=Text(), rule=MonoForward(taps=["mix"]))
    assert torch.equal(loaded.predict(x), run.predict(x))


def test_the_tables_are_public():
    net = bpfree.nets.NETS["mlp"]((1, 8, 8), 10)
    trainer = bpfree.Trainer(net, bpfree.rules.RULES["dfa"](memory="flat"), bpfree.tasks.TASKS["classify"](10))
    trainer.step(Batch(torch.randn(4, 1, 8, 8), torch.arange(4)))
    assert trainer.progress.step == 1


def test_a_rule_and_a_net_from_outside():
    trainer = Trainer(net32(), "tests.outside:HalfBackprop", TASK)
    assert type(trainer.rule).__name__ == "HalfBackprop"
    with pytest.raises(UserError, match="'os:system' is not a Rule"):
        Trainer(net32(), "os:system", TASK)
    with pytest.raises(UserError, match="cannot be imported"):
        Trainer(net32(), "no_such_module:Rule", TASK)


def test_a_split_smaller_than_a_batch_is_one_batch(digits_data):
    split = Split(digits_data.train.x[:5], digits_data.train.y[:5])
    trainer = Trainer(net32(), "dfa", TASK)
    trainer.fit(Batches(split, Preprocess.of(digits_data, split), 64, seed=0), 2)
    assert trainer.progress.step == 2


def test_gradients_of_what_the_optimiser_does_not_hold_are_cleared(batch32):
    """They would grow for ever, and count when clipping."""
    net = net32()
    optimizer = torch.optim.SGD([p for name, p in net.named_parameters() if not name.startswith("fc1")], lr=0.0)
    trainer = Trainer(net, "backprop", TASK, optimizer)
    trainer.step(batch32)
    first = net.fc1.weight.grad.clone()
    trainer.step(batch32)
    torch.testing.assert_close(net.fc1.weight.grad, first)


def test_a_constant_that_is_infinite_is_no_divergence(digits_data):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = net32()
            self.register_buffer("mask", torch.full((10,), -torch.inf).index_fill(0, torch.arange(10), 0.0))
            self.register_buffer("constant", torch.tensor(-torch.inf))

        def forward(self, x):
            return self.body(x) + self.mask

    trainer = Trainer(Masked(), "backprop", TASK)
    trainer.fit(batches(digits_data), 1)
    assert len(trainer.progress.history) == 1


def test_nets_and_labels_that_cannot_work_are_explained(batch32):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = net32()

        def forward(self, x):
            return self.body(x), x

    for rule in (Backprop(), MonoForward(taps=["body.act1"])):
        with pytest.raises(UserError, match="net: its output is tuple, allowed: one tensor"):
            Trainer(Two(), rule, TASK).step(batch32)
    with pytest.raises(UserError, match="labels in that range"):
        Trainer(net32(), "backprop", TASK).step(Batch(batch32.x, batch32.y + 5))
    frozen = net32().requires_grad_(False)
    for name in ("dfa", "mono_forward", "predsim", "local", "forward_forward"):
        with pytest.raises(UserError, match="net: it has no trainable parameters"):
            RULES[name]().bind(frozen, TASK, batch32)


@pytest.mark.parametrize("fused", [True, False])
def test_sgd_moves_parameters_that_get_their_first_gradient_later(fused):
    """torch's fused form raises a TypeError; the other form is the reference."""
    found = []
    for ours in (True, False):
        torch.manual_seed(0)
        first, second = (torch.nn.Parameter(torch.randn(3, dtype=torch.float64)) for _ in range(2))
        options = {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.01}
        groups = [{"params": [first, second]}]
        spec = {"name": "sgd", "fused": fused, **options}
        optimizer = make_optimizer(spec, groups) if ours else torch.optim.SGD(groups, **options)
        for step in range(3):
            first.grad = torch.randn(3, dtype=torch.float64)
            second.grad = torch.randn(3, dtype=torch.float64) if step else None
            optimizer.step()
        found.append((first.detach(), second.detach()))
    for own, reference in zip(*found, strict=True):
        torch.testing.assert_close(own, reference, rtol=1e-14, atol=1e-15)
