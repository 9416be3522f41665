"""Heads side by side compute what the loop over blocks computes, and nothing in such a step waits for the device."""

import contextlib

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from bpfree import Batch, Noise, Trainer, UserError
from bpfree.diffusion import side_by_side
from bpfree.diffusion.blocks import BlockRule
from bpfree.lab.certify import measure
from bpfree.nets import Denoiser
from bpfree.noise import Clock, NotCapturable, StepNoise, counting_everywhere
from bpfree.rules import RULES
from bpfree.tasks import Reconstruct
from tests.helpers import IN_SHAPE, TASK, bound, denoiser_for
from tests.training.test_one_device import Watch, no_generators  # noqa: F401, a fixture

FAMILY = [name for name, rule in RULES.items() if issubclass(rule, BlockRule)]
DIMS = {"one_hot": 10, "learned": 20, "image": 64}


@pytest.fixture
def stacked(monkeypatch):
    """How many heads each batched product had."""
    seen = []
    monkeypatch.setattr(
        "bpfree.diffusion.blocks.side_by_side",
        lambda heads, *args: seen.append(len(heads)) or side_by_side.side_by_side(heads, *args),
    )
    return seen


def pair(name, batch, task=TASK, embedding="one_hot", blocks=4, **options):
    torch.manual_seed(0)
    form = {"trunk": "shared", "width": 16, "embedding_dim": DIMS[embedding], **options}
    head = {**denoiser_for(name)["head"], **form.pop("head", {})}
    net = Denoiser(IN_SHAPE, task.dim, blocks=blocks, head=head, **form).double().to(batch.x.device)
    return net, bound(RULES[name](embedding=embedding), net, batch, task)


def learned(net, rule, batch, task=TASK, *, wide, steps=2):
    """Scalars, gradients and buffers after some steps whose gradients add up, by name."""
    rule.side_by_side = wide
    for step in range(steps):
        scalars = rule.gradients(net, task, batch, Noise(0, step))
    found = {f"{kind} {n}": p.grad for kind, m in (("net", net), ("rule", rule)) for n, p in m.named_parameters()}
    return scalars | found | {f"buffer {n}": b for n, b in net.named_buffers()}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    # The gradient of a bias before a batch norm is 0 but for the rounding errors of larger numbers.
    scale = max(float(value.abs().max()) for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-13 * scale, msg=name)


@pytest.mark.parametrize("embedding", ["one_hot", "learned"])
@pytest.mark.parametrize(
    "form", [{}, {"trunk": "local", "head": "mlp"}, {"trunk": "local"}, {"head": "linear"}], ids=str
)
@pytest.mark.parametrize("name", FAMILY)
def test_side_by_side_is_the_loop(name, form, embedding, batch, stacked):
    form = {**form, "head": {"name": form["head"]}} if "head" in form else form
    for blocks, counted in ((2, False), (5, True)):
        with counting_everywhere() if counted else contextlib.nullcontext():
            loop = learned(*pair(name, batch, TASK, embedding, blocks, **form), batch, wide=False)
            assert not stacked
            assert_equal(learned(*pair(name, batch, TASK, embedding, blocks, **form), batch, wide=True), loop)
        assert stacked == [blocks, blocks]
        stacked.clear()


def test_a_training_ends_alike(batch, stacked):
    ends = []
    for wide in (False, True):
        net, rule = pair("noprop_dt", batch)
        rule.side_by_side = wide
        trainer = Trainer(net, rule, TASK, {"name": "adamw", "lr": 1e-2}, clip=1.0)
        scalars = [trainer.step(batch) for _ in range(3)][-1]
        ends.append(scalars | {"prediction": trainer.predict(batch.x)})
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-6, atol=1e-9)  # Adam divides by gradients of almost 0
    assert len(stacked) == 3


def test_rebuilding_heads_too(batch, stacked):
    task = Reconstruct(IN_SHAPE)
    images = Batch(batch.x, batch.x)
    loop = learned(*pair("noprop_dt", images, task, "image"), images, task, wide=False)
    assert_equal(learned(*pair("noprop_dt", images, task, "image"), images, task, wide=True), loop)
    assert stacked == [4, 4]


def test_only_as_many_at_once_as_memory_allows(batch, stacked, monkeypatch):
    loop = learned(*pair("noprop_dt", batch, blocks=5), batch, wide=False, steps=1)
    net, rule = pair("noprop_dt", batch, blocks=5)
    monkeypatch.setattr(side_by_side, "_MOST_BYTES", 2 * side_by_side.bytes_of(net.heads[0], len(batch.y)))
    assert_equal(learned(net, rule, batch, wide=True, steps=1), loop)
    assert stacked == [2, 2], "the fifth is alone"


def test_the_device_decides(batch, stacked):
    for wide in (False, True):
        with counting_everywhere() if wide else contextlib.nullcontext():
            net, rule = pair("noprop_dt", batch)
            rule.gradients(net, TASK, batch, Noise(0, 0))
            assert bool(stacked) == (wide or batch.x.device.type != "cpu")
            stacked.clear()
            net, rule = pair("noprop_dt", batch, trunk="own")
            rule.gradients(net, TASK, batch, Noise(0, 0))
            assert not stacked


def with_dropout(head):
    head.join.append(nn.Dropout(0.5))


def of_another_width(head):
    head.residual = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 16)).double()


def hooked(head):
    head.join.register_forward_hook(lambda module, args, out: None)


def parametrized(head):
    parametrizations.weight_norm(head.join[0])


def in_evaluation_mode(head):
    head.embed[1].eval()


class Own(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def of_a_users_class(head):
    head.embed[0] = Own(10, 16).double()


CHANGES = (with_dropout, of_another_width, hooked, parametrized, in_evaluation_mode, of_a_users_class)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("how_many", [1, 3])
def test_what_cannot_be_stacked_takes_the_loop(change, how_many, batch, stacked):
    found = []
    for wide in (False, True):
        net, rule = pair("noprop_dt", batch, blocks=3)
        for head in net.heads[-how_many:]:
            change(head)
        net.to(batch.x.device)
        found.append(learned(net, rule, batch, wide=wide))
    assert bool(stacked) == (change is of_another_width and how_many == 3), "then all are alike again"
    assert_equal(*found)


def test_hooks_of_parameters_see_their_gradients(batch):
    net, rule = pair("noprop_dt", batch)
    seen = {}
    for name, p in net.heads.named_parameters():
        p.register_post_accumulate_grad_hook(lambda p, name=name: seen.__setitem__(name, p.grad))
    learned(net, rule, batch, wide=True, steps=1)
    assert seen.keys() == dict(net.heads.named_parameters()).keys()


def test_a_frozen_head_stays_frozen(batch):
    net, rule = pair("noprop_dt", batch)
    net.heads[2].requires_grad_(False)
    learned(net, rule, batch, wide=True, steps=1)
    assert [head.join[0].weight.grad is not None for head in net.heads] == [True, True, False, True]


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("trunk", ["shared", "local"])
def test_a_step_neither_waits_for_the_device_nor_copies_to_it(name, trunk, no_generators):  # noqa: F811
    batch = Batch(torch.randn(16, *IN_SHAPE), torch.arange(16) % 10)
    net = Denoiser(IN_SHAPE, 10, width=16, trunk=trunk, **denoiser_for(name))
    rule = bound(RULES[name](), net, batch).to("meta")
    net.to("meta")
    batch = Batch(batch.x.to("meta"), batch.y.to("meta"))
    with Watch() as step:
        rule.gradients(net, TASK, batch, Noise(0, 0))
    assert not step.mixed
    assert not step.waits


@pytest.mark.parametrize("name", [name for name in RULES if name.startswith("noprop")])
def test_a_step_needs_no_number_that_only_the_host_has(name, batch):
    """As while it is captured. An order that chooses a block by the step says that it cannot be captured."""
    torch.manual_seed(0)
    net = Denoiser(IN_SHAPE, 10, **{"width": 16, "trunk": "shared", **denoiser_for(name)}).double()
    net = net.to(batch.x.device)
    rule, clock = bound(RULES[name](), net, batch), Clock(batch.x.device)
    with counting_everywhere():
        clock.set(5)
        expected = rule.gradients(net, TASK, batch, Noise(0, 5))
        clock.hidden = True
        found = rule.gradients(net, TASK, batch, StepNoise(0, clock=clock))
        assert_equal(found, expected)
        for order in () if RULES[name].timed else ("random", "sequential"):
            rule.order, rule._round, clock.hidden = order, 6, True
            with pytest.raises(NotCapturable):
                rule.gradients(net, TASK, batch, StepNoise(0, clock=clock))
            clock.hidden = False
            assert_equal(
                rule.gradients(net, TASK, batch, StepNoise(0, clock=clock)),
                rule.gradients(net, TASK, batch, Noise(0, 5)),
            )


def test_a_certificate_is_about_one_block_on_every_device(batch, stacked):
    net = Denoiser(IN_SHAPE, 10, width=16, trunk="shared", **denoiser_for("noprop_dt")).double().to(batch.x.device)
    trainer = measure._bound(net, RULES["noprop_dt"](), TASK, batch)
    with counting_everywhere():
        trainer.step(batch)
    assert not stacked


def test_the_loss_of_earlier_versions_is_not_silently_ignored():
    with pytest.raises(UserError, match="block_losses"):

        class Old(RULES["noprop_dt"]):
            def block_loss(self, t, out, z, eps, task, batch):
                return out.sum()
