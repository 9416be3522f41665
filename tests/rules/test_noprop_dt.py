"""NoProp against its equations, and against mistakes that are easy to make."""

import pytest
import torch
from torch import nn

import bpfree
from bpfree import Noise, UserError
from bpfree.nets import Denoiser
from bpfree.rules import NoPropDT, NoPropLinear
from tests.helpers import IN_SHAPE, TASK, bound, jolt, zero_grad


def net_and_rule(batch, **options):
    torch.manual_seed(0)
    net = Denoiser(IN_SHAPE, 10, blocks=4, width=16, **options).double().to(batch.x.device)
    return net, bound(NoPropDT(), net, batch)


def unit_gradients(net, rule, batch):
    zero_grad(net, rule)
    rule.gradients(net, TASK, batch, Noise(0, 0))
    return [[p.grad.clone() for p in unit] for unit in rule.units(net)]


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_the_loss_is_eq_8(batch):
    """The blocks' losses sum to T/2 eta E_t[dSNR |u^ - u|^2], t uniform."""
    net, rule = net_and_rule(batch)
    outputs = []
    for head in net.heads:
        head.register_forward_hook(lambda m, args, out: outputs.append(out.detach()))
    scalars = rule.gradients(net, TASK, batch, Noise(0, 0))
    u = torch.nn.functional.one_hot(batch.y, 10).double()
    terms = [
        float(rule.levels.dsnr[t - 1]) * (outputs[t - 1].softmax(1) - u).square().sum(1).mean() for t in range(1, 5)
    ]
    expected = 4 / 2 * 0.1 * torch.stack(terms).mean()
    got = sum(v for k, v in scalars.items() if k.startswith("loss/block"))
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(scalars["loss"], got + scalars["loss/readout"])


def test_block_t_sees_noise_level_t_minus_1(batch):
    net, rule = net_and_rule(batch)
    seen = []
    for head in net.heads:
        head.register_forward_hook(lambda m, args, out: seen.append(args[1]))
    rule.gradients(net, TASK, batch, Noise(0, 0))
    u = torch.nn.functional.one_hot(batch.y, 10).double()
    for t, z in enumerate(seen, start=1):
        abar = float(rule.levels.abar[t - 1])
        assert float((z - abar**0.5 * u).var()) == pytest.approx(1 - abar, rel=0.25)
        if t > 1:
            assert float((z * u).sum(1).mean()) == pytest.approx(abar**0.5, abs=0.5 * (1 - abar) ** 0.5 + 0.05)


@pytest.mark.parametrize("changed", range(4))
def test_block_t_does_not_move_when_block_s_changes(changed, batch):
    net, rule = net_and_rule(batch)
    before = unit_gradients(net, rule, batch)
    jolt(rule.units(net)[changed])
    after = unit_gradients(net, rule, batch)
    for t, (x, y) in enumerate(zip(before, after, strict=True)):
        assert equal(x, y) == (t != changed)


def test_a_shared_trunk_is_moved_by_block_1_alone(batch):
    net, rule = net_and_rule(batch, trunk="shared")
    before = unit_gradients(net, rule, batch)
    trunk = {id(p) for p in net.trunks.parameters()}
    assert [any(id(p) in trunk for p in unit) for unit in rule.units(net)] == [True, False, False, False, False]
    for later in (1, 2, 3):
        jolt(net.heads[later].parameters())
    assert equal(before[0], unit_gradients(net, rule, batch)[0])


def test_the_cross_entropy_reaches_the_read_out_alone(batch):
    net, rule = net_and_rule(batch)
    before = unit_gradients(net, rule, batch)
    jolt(rule.readout.parameters())
    after = unit_gradients(net, rule, batch)
    assert all(equal(x, y) for x, y in zip(before[:-1], after[:-1], strict=True))
    assert not equal(before[-1], after[-1])


def test_inference_takes_the_image_alone_and_uses_every_block(batch):
    net, rule = net_and_rule(batch)
    net.eval()
    reference = rule.predict(net, batch.x)
    assert torch.equal(reference, rule.predict(net, batch.x))
    for head in net.heads:
        calls = []
        handle = head.register_forward_hook(lambda m, args, out, calls=calls: calls.append(1))
        rule.predict(net, batch.x)
        handle.remove()
        assert len(calls) == 1
        kept = [p.detach().clone() for p in head.parameters()]
        jolt(head.parameters())
        assert not torch.equal(reference, rule.predict(net, batch.x))
        with torch.no_grad():
            for p, k in zip(head.parameters(), kept, strict=True):
                p.copy_(k)


def test_stochastic_inference_repeats_and_differs_from_deterministic(batch):
    net, rule = net_and_rule(batch)
    net.eval()
    deterministic = rule.predict(net, batch.x)
    rule.inference = "stochastic"
    stochastic = rule.predict(net, batch.x)
    assert torch.equal(stochastic, rule.predict(net, batch.x))
    assert not torch.allclose(stochastic, deterministic)


def test_embeddings_are_one_hot_and_fixed(batch):
    _, rule = net_and_rule(batch)
    assert torch.equal(rule.embedding.weight, torch.eye(10).to(rule.embedding.weight))
    assert list(rule.embedding.parameters()) == []


def test_reported_accuracy_is_of_block_1_on_pure_noise(batch):
    """z_0 holds nothing of the label, so labels shuffled after the fact are at chance for an untrained net."""
    net, rule = net_and_rule(batch)
    assert float(rule.levels.abar[0]) == 0
    scalars = rule.gradients(net, TASK, batch, Noise(0, 0))
    assert float(scalars["accuracy"]) < 0.6


def test_what_cannot_work_is_refused(batch):
    with pytest.raises(UserError, match=r"net: found Sequential, but NoProp needs denoising blocks"):
        NoPropDT().bind(nn.Sequential(nn.Linear(2, 2)), TASK, batch)
    for net, message in (
        (
            Denoiser(IN_SHAPE, 10, blocks=1, width=8, head={"timed": True}),
            "takes a block for each step. Use net.head.timed=false",
        ),
        (
            Denoiser(IN_SHAPE, 10, blocks=2, width=8, head={"predicts": "embedding"}),
            "its blocks predict embedding, allowed with",
        ),
        (Denoiser(IN_SHAPE, 7, blocks=2, width=8, embedding_dim=10), r"its blocks give \[2, 7\] for 2 samples"),
    ):
        with pytest.raises(UserError, match=message):
            NoPropDT().bind(net.to(batch.x), TASK, batch)


def test_linear_is_dt_with_other_settings_and_a_read_out_that_learns_from_the_chain(batch):
    torch.manual_seed(0)
    net = Denoiser(IN_SHAPE, 10, blocks=4, width=16).double().to(batch.x.device)
    rule = bound(NoPropLinear(), net, batch)
    noise_levels = 1 - rule.levels.abar
    torch.testing.assert_close(noise_levels, torch.linspace(0.9, 0.01, 5, dtype=torch.float64))
    before = unit_gradients(net, rule, batch)
    jolt(rule.units(net)[0])
    after = unit_gradients(net, rule, batch)
    assert [equal(x, y) for x, y in zip(before, after, strict=True)] == [False, True, True, True, False]


@pytest.mark.parametrize("order", ["random", "sequential"])
def test_other_orders_give_one_block_its_share(order, batch):
    """One block alone learns T times what it learns when all do (the factor of the paper's Eq. 61)."""
    net, rule = net_and_rule(batch)
    together = unit_gradients(net, rule, batch)
    rule.order = order
    rule._round = 6
    seen = set()
    for step in range(24):
        zero_grad(net, rule)
        noise = Noise(0, step)
        scalars = rule.gradients(net, TASK, batch, noise)
        units = rule.units(net)
        moved = [t for t, unit in enumerate(units[:-1]) if any(p.grad is not None for p in unit)]
        assert len(moved) == 1, "the others have no gradient at all"
        (t,) = moved
        seen.add(t)
        assert f"loss/block{t + 1}" in scalars
        if order == "sequential":
            assert t == (0, 0, 1, 2, 2, 3)[step % 6], "each epoch visits all blocks, block 1 first"
        rule.order = "all"
        mine = next([p.grad.clone() for p in unit] for unit in units if unit[0].grad is not None)
        zero_grad(net, rule)
        rule.gradients(net, TASK, batch, noise)
        rule.order = order
        for own, p in zip(mine, units[t], strict=True):
            torch.testing.assert_close(own, 4 * p.grad)
    assert seen == {0, 1, 2, 3}
    assert together


def test_blocks_in_turn_share_each_epoch(digits_data):
    net = {"name": "denoiser", "blocks": 2, "width": 16}
    rule = {"name": "noprop_dt", "order": "sequential"}
    run = bpfree.fit(net, "digits", rule, epochs=2, batch_size=256)
    for record in run.metrics:
        assert {k for k in record["train"] if k.startswith("loss/block")} == {"loss/block1", "loss/block2"}
    run = bpfree.fit(net, "digits", rule, epochs=4, batch_size=1294)
    trained = [sorted(k for k in record["train"] if k.startswith("loss/block")) for record in run.metrics]
    assert trained == [["loss/block1"], ["loss/block2"]] * 2, "an epoch of one batch has room for one block"
    with pytest.raises(UserError, match="epochs: found 1 of 1 batches, allowed with order: sequential: at least 2"):
        bpfree.fit(net, "digits", rule, epochs=1, batch_size=1294)
    trainer = bpfree.Trainer(run.net, NoPropDT(order="sequential"), TASK)
    with pytest.raises(UserError, match="found 'sequential' outside Trainer.fit"):
        trainer.step(bpfree.Batch(digits_data.train.x[:8].float(), digits_data.train.y[:8]))


@pytest.mark.parametrize("t", range(4))
def test_the_other_blocks_need_not_be_there(t, batch):
    """In turn: their parameters have no values while block t learns, as if they lay on another machine."""
    net, rule = net_and_rule(batch)
    rule.order, rule._round = "sequential", 4
    for other in set(range(4)) - {t}:
        net.heads[other].to("meta")
        net.trunks[other].to("meta")
    rule.gradients(net, TASK, batch, Noise(0, t))
    assert all(p.grad is not None for p in net.heads[t].parameters())


def test_one_block_at_a_time_takes_the_memory_of_one_block(digits_data):
    """Gradients included: those of the other blocks are never made."""
    batch = bpfree.Batch(digits_data.train.x[:256].float(), digits_data.train.y[:256])
    peaks = {}
    for blocks, order in ((1, "all"), (8, "all"), (8, "random")):
        torch.manual_seed(0)
        net = Denoiser(IN_SHAPE, 10, blocks=blocks, width=128)
        peaks[blocks, order] = bpfree.Trainer(net, NoPropDT(order=order), TASK).step_memory(batch)
    assert peaks[8, "random"] < 1.1 * peaks[1, "all"]
    assert peaks[8, "all"] > 2 * peaks[1, "all"]
