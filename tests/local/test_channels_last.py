"""The memory order of feature maps: used where it is safe and gains, and never at the cost of the user's net."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import bpfree
from bpfree import Trainer
from bpfree.local.channels_last import channels_last, lies_channels_last
from bpfree.nets import NETS
from bpfree.nets.unchanged import same_modes
from bpfree.trackers import Tracker
from bpfree.training import processor, rehearsal
from bpfree.types import Batch
from tests.helpers import TASK, same

CONV = {"name": "conv", "channels": [4, 6], "hidden": 8}


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return Batch(torch.randn(40, 1, 8, 8, generator=generator), torch.arange(40) % 10)


@pytest.fixture
def allowed(monkeypatch):
    """As on a machine where channels last gains and no fault is known."""
    monkeypatch.setattr(rehearsal, "is_x86", lambda: True)
    monkeypatch.setattr(rehearsal, "has_avx512", lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)


class Viewed(nn.Module):
    """The CNN of many tutorials, which asks that its feature maps lie as torch lays them by default."""

    def __init__(self, norm=nn.Identity):
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(1, 4, 3), norm(), nn.Linear(144, 10)

    def forward(self, x):
        x = self.norm(self.conv(x)).relu()
        return self.out(x.view(x.size(0), -1))


class Flat(Viewed):
    """The same with `flatten`, which takes any order."""

    def forward(self, x):
        return self.out(self.norm(self.conv(x)).relu().flatten(1))


def test_the_order_is_used_where_it_gains(images, allowed):
    trainer = Trainer(Flat(), "backprop", TASK)
    seen = []
    trainer.net.conv.register_forward_hook(lambda module, args, out: seen.append(lies_channels_last(out)))
    trainer.step(images)
    trainer.predict(images.x)
    assert trainer.channels_last
    assert seen[-2:] == [True, True]


@pytest.mark.parametrize("rule", ["backprop", "dfa", "fa", "mono_forward", "es", "forward_gradient"])
def test_a_net_that_needs_the_other_order_trains(rule, images, allowed):
    """And exactly as the same net that takes any order does when it is left in that one."""
    options = {"taps": ["conv"]} if rule in ("dfa", "mono_forward") else {}
    learned = []
    for kind in (Viewed, Flat):
        torch.manual_seed(0)
        trainer = Trainer(kind(), {"name": rule, **options}, TASK)
        if kind is Flat:
            trainer.channels_last = False
        trainer.step(images)
        trainer.predict(images.x)
        assert trainer.channels_last is False
        learned.append(trainer.net.state_dict())
    assert same(*learned)


def test_group_norm_trains_by_forward_derivatives(images, allowed):
    net = Flat(norm=lambda: nn.GroupNorm(2, 4))
    trainer = Trainer(net, "forward_gradient", TASK)
    assert bool(trainer.step(images)["loss"].isfinite())


@pytest.mark.parametrize("rule", ["backprop", "dfa", "pred", "forward_forward", "pepita"])
def test_both_orders_give_the_same_gradients(rule, images, allowed):
    learned = []
    for order in (True, False):
        torch.manual_seed(0)
        net = NETS["conv"]((1, 8, 8), 10, channels=[4, 6], hidden=8)
        trainer = Trainer(net, rule, TASK, {"name": "sgd", "lr": 0.1})
        trainer.channels_last = None if order else False
        trainer.step(images)
        assert trainer.channels_last is order
        learned.append(net.state_dict())
    for name, value in learned[0].items():
        torch.testing.assert_close(learned[1][name], value, rtol=1e-4, atol=1e-6)


def test_a_wrong_result_is_refused(images, allowed):
    class Wrong(Flat):
        def forward(self, x):
            return super().forward(x) * (1.1 if x.stride(1) == 1 else 1.0)

    trainer = Trainer(Wrong(), "backprop", TASK)
    trainer.step(images)
    assert trainer.channels_last is False


def test_a_rehearsal_changes_nothing(images, allowed):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.2), nn.Flatten(), nn.Linear(144, 10))
    before, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    trainer = Trainer(net, "dfa", TASK)
    trainer.bind(images)
    assert trainer.channels_last
    assert same(before, net.state_dict())
    assert torch.equal(random, torch.get_rng_state())
    assert all(p.grad is None for p in net.parameters())


NARROW = nn.Conv2d(4, 8, 1, stride=2)


@pytest.mark.parametrize(
    ("layer", "avx512", "safe"),
    [
        (NARROW, False, False),
        (NARROW, True, True),
        (nn.Conv2d(4, 8, 1), False, True),
        (nn.Conv2d(8, 8, 1, stride=2), False, True),
        (nn.Conv2d(4, 8, 3, stride=2), False, True),
    ],
)
def test_known_faults_of_libraries_are_avoided(layer, avx512, safe, allowed, monkeypatch):
    """oneDNN#6035 writes past its memory, and the process dies."""
    monkeypatch.setattr(rehearsal, "has_avx512", lambda: avx512)
    net = nn.Sequential(layer, nn.Flatten(), nn.LazyLinear(10))
    x = torch.randn(6, layer.in_channels, 8, 8)
    net(x)
    assert any(fault.hits(net, nn.Identity()) for fault in rehearsal.FAULTS) is not safe
    for decided in (
        () if avx512 else (None, True)
    ):  # never run what may kill this process; also if a training was begun on another machine
        trainer = Trainer(net, "backprop", TASK)
        trainer.channels_last = decided
        trainer.bind(Batch(x, torch.arange(6)))
        assert trainer.channels_last is safe


@pytest.mark.parametrize(
    ("limit", "there"),
    [("", True), ("AVX2", False), ("avx2_vnni", False), ("AVX512_CORE", True), ("ALL", True), ("SSE41", False)],
)
def test_the_instructions_that_onednn_may_use(limit, there, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
        monkeypatch.setenv(name, limit)
        assert processor.has_avx512() is there
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not processor.has_avx512()


class Interrupt(Tracker):
    name = "interrupt"

    def on_step(self, trainer, batch):
        raise KeyboardInterrupt


class Fail(Tracker):
    name = "fail"

    def on_step(self, trainer, batch):
        raise ZeroDivisionError


@pytest.mark.parametrize("end", [None, Interrupt, Fail])
@pytest.mark.parametrize("rule", ["backprop", "dfa", "es", "noprop_dt"])
def test_the_users_net_comes_back_as_it_was_given(rule, end, digits_data, tmp_path, allowed):
    torch.manual_seed(0)
    if rule == "noprop_dt":
        net = NETS["denoiser"]((1, 8, 8), 10, blocks=2, width=16)
    else:
        conv = (nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
        net = nn.Sequential(*conv, nn.Linear(144, 10))
        net[1].eval()  # frozen statistics
    net.eval()
    parts = list(net.modules())
    parts[-1].train()
    modes = [part.training for part in parts]
    before = [(p, p.data, p.data_ptr(), p.stride(), p.detach().clone()) for p in net.parameters()]
    options = {"epochs": 1, "batch_size": 300, "device": "cpu", "trackers": [end()] if end else []}
    if end is None:
        bpfree.fit(net, digits_data.train, rule, **options)
    else:
        with pytest.raises((KeyboardInterrupt, ZeroDivisionError)):
            bpfree.fit(net, digits_data.train, rule, **options)
    assert [part.training for part in parts] == modes
    for p, (known, alias, place, strides, _) in zip(net.parameters(), before, strict=True):
        assert p is known
        assert (p.data_ptr(), p.stride()) == (place, strides)
        assert torch.equal(alias, p.data)
        p.view(-1)
    assert any(not torch.equal(start, p.data) for p, *_, start in before)
    nn.utils.parameters_to_vector(net.parameters())
    save_file(dict(net.named_parameters()), tmp_path / "net.safetensors")
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    assert not any(getattr(part, name) for part in parts for name in hooks)
    assert not any(p._post_accumulate_grad_hooks or p._backward_hooks for p in net.parameters())


def test_all_parts_of_the_net_are_in_training_mode_while_it_trains(digits_data):
    """As after net.train(), which a loop in plain torch would call."""
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10))
    net[1].eval()
    bpfree.fit(net, digits_data.train, "backprop", epochs=1)
    assert net[1].num_batches_tracked > 0
    assert not net[1].training


def test_modes_are_restored():
    net = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout()))
    net.eval()
    net[1].train()
    net[1][0].eval()
    with same_modes(net):
        net.train()
    assert [m.training for m in net.modules()] == [False, False, True, False]


def test_a_checkpoint_keeps_the_order(tmp_path, allowed, monkeypatch):
    run = bpfree.fit(CONV, "digits", "backprop", epochs=1, out=tmp_path / "run", device="cpu")
    assert run.trainer.channels_last
    assert bpfree.load(tmp_path / "run", device="cpu").trainer.channels_last
    x, y = run.test.x, run.test.y
    assert bpfree.load(tmp_path / "run").evaluate((x, y)) == run.evaluate((x, y))
    monkeypatch.setattr(rehearsal, "is_x86", lambda: False)
    elsewhere = bpfree.load(tmp_path / "run")
    assert elsewhere.trainer.channels_last is False
    torch.testing.assert_close(elsewhere.scores(x), run.scores(x), rtol=1e-4, atol=1e-5)


def test_only_images_are_put_in_order():
    x = {"image": torch.randn(2, 3, 4, 4), "tokens": torch.ones(2, 5, dtype=torch.int64)}
    ordered = channels_last(x)
    assert lies_channels_last(ordered["image"])
    assert torch.equal(ordered["image"], x["image"])
    assert ordered["tokens"] is x["tokens"]
