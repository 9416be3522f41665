"""The Transformer: a token sees only the past, a cache changes nothing, and blocks are those of torch."""

import copy

import pytest
import torch
from torch import nn

import bpfree
from bpfree import Batch, Noise, Trainer, UserError
from bpfree.errors import LeakError
from bpfree.local.segments import stages
from bpfree.nets import NETS, blocks
from bpfree.nets.blocks import Block, BlockForm, rotate
from bpfree.tasks import Classify
from tests.helpers import bound

STEPS, VOCABULARY = 7, 11
KINDS = [
    {},
    {"norm": "layer", "mlp": "gelu", "positions": "learned"},
    {"mlp": "gelu", "tied": True},
    {"norm": "layer", "positions": "learned", "dropout": 0.3},
]
kinds = pytest.mark.parametrize("options", KINDS, ids=lambda options: " ".join(map(str, options.values())) or "default")


def made(shape=(STEPS,), out=VOCABULARY, **options):
    torch.manual_seed(0)
    net = NETS["transformer"](shape, out, **{"width": 16, "depth": 3, "each_step": True, **options}).double().eval()
    for p in net.parameters():  # large weights, so that each part of the net matters
        p.data.add_(0.2 * torch.randn_like(p))
    return net


@pytest.fixture
def tokens():
    return torch.randint(VOCABULARY, (4, STEPS), generator=torch.Generator().manual_seed(1))


@kinds
def test_no_output_depends_on_a_later_token(options, tokens):
    net = made(**options)
    out = net(tokens)
    assert out.shape == (4, STEPS, VOCABULARY)
    for t in range(STEPS):
        changed = tokens.clone()
        changed[:, t] = (changed[:, t] + 1) % VOCABULARY
        other = net(changed)
        assert torch.equal(other[:, :t], out[:, :t])
        assert all(not torch.allclose(other[:, i], out[:, i]) for i in range(t, STEPS))


@kinds
@pytest.mark.parametrize("sizes", [[1] * STEPS, [3, 1, 3], [STEPS]], ids=str)
def test_steps_with_a_cache_are_the_whole_pass(options, sizes, tokens):
    net, cache, outs = made(**options), None, []
    for part in tokens.split(sizes, 1):
        out, cache = net.step(part, cache)
        outs.append(out)
    torch.testing.assert_close(torch.cat(outs, 1), net(tokens), rtol=1e-10, atol=1e-12)
    assert len(cache) == 3
    assert all(part.shape == (4, 4, STEPS, 4) for kept in cache for part in kept)


def test_the_output_of_all_steps_is_read_from_the_last_or_from_the_mean(tokens):
    whole = made()
    last, mean = (made(vocabulary=VOCABULARY, each_step=False, pool=pool) for pool in ("last", "mean"))
    for net in (last, mean):
        net.load_state_dict(whole.state_dict())
    torch.testing.assert_close(last(tokens), whole(tokens)[:, -1], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(mean(tokens), whole(tokens).mean(1), rtol=1e-12, atol=1e-14)  # the read-out is linear


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "all"])
def test_a_block_is_torchs_layer(causal):
    torch.manual_seed(0)
    block = Block(BlockForm(12, 3, norm="layer", mlp="gelu", rotary=False, causal=causal)).double()
    other = nn.TransformerEncoderLayer(
        12, 3, 48, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    ).double()
    for p in other.parameters():
        nn.init.normal_(p)
    theirs = {"norm1": other.norm1, "norm2": other.norm2, "attention.out": other.self_attn.out_proj}
    theirs |= {"mlp.up": other.linear1, "mlp.down": other.linear2}
    for name, layer in theirs.items():
        block.get_submodule(name).load_state_dict(layer.state_dict())
    block.attention.qkv.weight, block.attention.qkv.bias = other.self_attn.in_proj_weight, other.self_attn.in_proj_bias
    h = torch.randn(2, 5, 12, dtype=torch.float64)
    mask = nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64) if causal else None
    torch.testing.assert_close(block(h), other(h, src_mask=mask), rtol=1e-10, atol=1e-12)


def test_swiglu_and_rmsnorm_are_their_equations():
    torch.manual_seed(0)
    block = Block(BlockForm(12, 2)).double()
    h = torch.randn(2, 5, 12, dtype=torch.float64)
    u, v = block.mlp.up.weight.chunk(2)
    gate = h @ u.T
    torch.testing.assert_close(block.mlp(h), (gate * gate.sigmoid() * (h @ v.T)) @ block.mlp.down.weight.T)
    nn.init.normal_(block.norm1.weight)
    root = (h.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(block.norm1(h), block.norm1.weight * h / root)
    assert not any(name.endswith("bias") for name, _ in block.named_parameters())


def test_products_of_rotated_vectors_depend_on_differences_of_positions_only():
    q, k = torch.randn(2, 3, STEPS, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def products(start):
        return rotate(q, start) @ rotate(k, start).mT

    torch.testing.assert_close(products(1234), products(0), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(products(0), q @ k.mT)
    assert not torch.allclose(rotate(q, 1) @ rotate(k, 0).mT, products(0))
    torch.testing.assert_close(rotate(q).norm(dim=-1), q.norm(dim=-1))


def test_a_rotation_is_a_product_of_complex_numbers():
    x = torch.randn(2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    turned = torch.complex(x[..., :3], x[..., 3:])
    for position in range(5):
        for i in range(3):
            angle = torch.tensor((position + 4) * 10_000 ** (-2 * i / 6))
            turned[:, position, i] *= torch.complex(angle.cos(), angle.sin())
    torch.testing.assert_close(rotate(x, 4), torch.cat([turned.real, turned.imag], -1), rtol=1e-5, atol=1e-5)


def test_bfloat16_tells_far_positions_apart():
    x = torch.ones(1, 2, 64, dtype=torch.bfloat16)
    far = rotate(x, 4096)
    assert far.dtype == torch.bfloat16
    assert not torch.equal(far[:, 0], far[:, 1])


def test_a_net_sees_only_differences_of_positions(tokens, monkeypatch):
    net = made()
    out = net(tokens)
    monkeypatch.setattr(blocks, "rotate", lambda x, start: rotate(x, start + 50))
    torch.testing.assert_close(net(tokens), out, rtol=1e-8, atol=1e-10)
    monkeypatch.setattr(blocks, "rotate", lambda x, start: x)
    assert not torch.allclose(net(tokens), out, rtol=1e-3)


def test_a_tied_read_out_is_the_tensor_of_the_embedding(tokens):
    net = made(tied=True)
    assert net.fc.weight is net.embed.values.weight
    untied = made()
    assert sum(p.numel() for p in untied.parameters()) - sum(p.numel() for p in net.parameters()) == 16 * VOCABULARY
    untied.load_state_dict(net.state_dict())
    torch.testing.assert_close(untied(tokens), net(tokens))
    for each in (net, untied):
        each(tokens).square().mean().backward()
    torch.testing.assert_close(net.fc.weight.grad, untied.fc.weight.grad + untied.embed.values.weight.grad)


def test_a_tied_net_goes_on_from_its_state(tokens):
    batch = Batch(tokens, tokens[:, 0])
    options = {"each_step": False, "vocabulary": VOCABULARY, "tied": True}
    trainers = [Trainer(made(**options).train(), "backprop", Classify(VOCABULARY), "adam", seed=s) for s in (0, 1)]
    for _ in range(2):
        trainers[0].step(batch)
    trainers[1].bind(batch)
    trainers[1].load_state_dict(copy.deepcopy(trainers[0].state_dict()))
    for trainer in trainers:
        trainer.step(batch)
        assert trainer.net.fc.weight is trainer.net.embed.values.weight
    for one, other in zip(*(trainer.net.parameters() for trainer in trainers), strict=True):
        assert torch.equal(one, other)


def test_a_local_rule_cuts_behind_each_block(tokens):
    net = made(dropout=0.1)
    assert stages(net) == ("block1", "block2", "norm")
    first, *_, output = bpfree.owners(net, stages(net), tokens)
    assert {name.partition(".")[0] for name in first.parameters} == {"embed", "block1"}
    assert output.parameters == ("fc.weight",)
    assert stages(made(each_step=False, vocabulary=VOCABULARY)) == ("block1", "block2", "pool")

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x)

    assert [tap.name for tap in bpfree.taps(Wrapped(), tokens) if tap.auto and tap.name != "output"] == [
        "net.block1",
        "net.block2",
        "net.norm",
    ]


def test_a_local_rule_refuses_a_tied_read_out(tokens):
    net = made(tied=True, each_step=False, vocabulary=VOCABULARY)
    with pytest.raises(LeakError, match=r"'embed.values.weight' of segment 'block1' is reached"):
        bound(bpfree.rules.RULES["mono_forward"](), net, Batch(tokens, tokens[:, 0]), Classify(VOCABULARY))


@pytest.mark.parametrize(
    ("options", "shape", "out", "expected"),
    [
        (
            {
                "width": 768,
                "depth": 12,
                "heads": 12,
                "norm": "layer",
                "mlp": "gelu",
                "positions": "learned",
                "tied": True,
            },
            (1024,),
            50_257,
            124_439_808,
        ),
        ({"width": 4096, "depth": 32, "heads": 32, "hidden": 11_008}, (4096,), 32_000, 6_738_415_616),
    ],
    ids=["GPT-2 small", "Llama 7B"],
)
def test_it_has_the_parameters_of_published_nets(options, shape, out, expected):
    with torch.device("meta"):
        net = NETS["transformer"](shape, out, each_step=True, **options)
    assert sum(p.numel() for p in net.parameters()) == expected


def test_it_begins_at_the_loss_of_chance(tokens):
    """The first scores say little, with any depth, tied or not."""
    for depth, tied in ((1, True), (12, True), (12, False)):
        with Noise(0).global_rng():
            net = NETS["transformer"]((STEPS,), 512, width=64, depth=depth, tied=tied, each_step=True)
        assert 0.3 < float(net(tokens).detach().std()) < 1


def test_numbers_and_images_are_steps(tokens):
    images = torch.randn(2, 3, 8, 5)
    net = NETS["transformer"]((3, 8, 5), 10, width=16, depth=1)
    assert net(images).shape == (2, 10)
    sequences = NETS["transformer"]((8, 15), 10, width=16, depth=1)
    sequences.load_state_dict(net.state_dict())
    torch.testing.assert_close(sequences(images.transpose(1, 2).flatten(2)), net(images))


def test_a_local_rule_finds_what_the_last_token_does_not_say():
    """The label is the first token, and the numbers reach the net as tokens."""
    x = torch.randint(4, (640, 6), generator=torch.Generator().manual_seed(0)).numpy()
    net = {"name": "transformer", "vocabulary": 4, "width": 32, "depth": 2}
    options = {"optimizer": {"name": "adam", "lr": 5e-3}, "batch_size": 32, "test": (x[512:], x[512:, 0])}
    run = bpfree.fit(net, (x[:512], x[:512, 0]), "mono_forward", epochs=8, **options)
    assert run.preprocess.has_tokens
    assert run.result["test"]["accuracy"] > 0.8


def test_integers_with_several_values_for_each_step_are_numbers():
    x = torch.randint(4, (16, 6, 2), generator=torch.Generator().manual_seed(0)).numpy()
    run = bpfree.fit({"name": "transformer", "width": 8, "depth": 1}, (x, x[:, 0, 0]), "backprop", epochs=1)
    assert not run.preprocess.has_tokens


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((5,), {}, "net.vocabulary: found none, allowed: the number of different tokens"),
        ((5,), {"vocabulary": 0, "each_step": False}, "net.vocabulary: found 0, allowed: a number above 0"),
        ((5, 3, 2, 2), {}, r"net transformer: found samples of shape \[5, 3, 2, 2\], allowed: tokens \[steps\]"),
        ((5, 3), {"tied": True}, "net.tied: found true with 10 outputs, allowed: as many outputs as the vocabulary"),
        ((5,), {"tied": True, "vocabulary": 11}, "net.tied: found true with 10 outputs"),
        ((5, 3), {"width": 18}, "net.width: found 18, allowed: a multiple of 2 x heads, .* 8"),
        ((5, 3), {"width": 18, "positions": "learned"}, "net.width: found 18, allowed: a multiple of the heads: 4"),
        ((5, 3), {"heads": 0}, "net.heads: found 0, allowed: a number above 0"),
        ((5, 3), {"depth": 0}, "net.depth: found 0, allowed: a number above 0"),
        ((5, 3), {"hidden": 0}, "net.hidden: found 0, allowed: a number above 0"),
        ((5, 3), {"norm": "batch"}, "net.norm: found 'batch', allowed: rms, layer"),
        ((5, 3), {"mlp": "relu"}, "net.mlp: found 'relu', allowed: swiglu, gelu"),
        ((5, 3), {"positions": "sine"}, "net.positions: found 'sine', allowed: rope, learned"),
        ((5, 3), {"pool": "max"}, "net.pool: found 'max', allowed: first, last, mean"),
        ((5, 3), {"dropout": 1.0}, "net.dropout: found 1.0, allowed: a number from 0 to below 1"),
    ],
)
def test_what_it_refuses(shape, options, message):
    with pytest.raises(UserError, match=message):
        NETS["transformer"](shape, 10, **options)


def test_samples_that_it_refuses(tokens):
    net = made(positions="learned")
    with pytest.raises(UserError, match="found samples of type torch.float64 with one value for each step"):
        net(tokens.double())
    with pytest.raises(UserError, match="net.vocabulary: found the token 11, allowed: from 0 to 10"):
        net(tokens.fill_(VOCABULARY))
    with pytest.raises(UserError, match="net: found 8 steps, allowed: at most 7, the number of learned positions"):
        net.step(torch.zeros(1, 1, dtype=torch.long), net.step(torch.zeros(1, STEPS, dtype=torch.long))[1])


# Padding

PADDED = [
    {"pool": pool, "norm": norm, "positions": positions}
    for pool in ("last", "mean")
    for norm, positions in (("rms", "rope"), ("layer", "learned"))
]


@pytest.mark.parametrize("options", PADDED, ids=lambda options: " ".join(options.values()))
def test_padding_changes_nothing(options, tokens):
    """A short sequence with padding has the output and the gradients that it has by itself."""
    net = made(out=3, each_step=False, vocabulary=VOCABULARY, padding=0, **options)
    text = tokens.clamp_min(1)
    for length in (1, 4, STEPS):
        padded = text.clone()
        padded[:, length:] = 0
        short, long = net(text[:, :length]), net(padded)
        torch.testing.assert_close(long, short, rtol=1e-12, atol=1e-13)
        grads = [
            torch.autograd.grad(out.square().sum(), list(net.parameters()), allow_unused=True) for out in (short, long)
        ]
        for one, other in zip(*grads, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
        for block in (net.embed, net.block1, net.block2):
            seen = []
            block.register_forward_hook(lambda module, args, h, seen=seen: seen.append(h))
            net(padded)
            assert not bool(seen[0][:, length:].any())
            assert bool(seen[0][:, :length].any(-1).all())
    assert net(torch.zeros_like(text)).isfinite().all(), "a text without a token"


def test_without_padding_the_numbers_are_those_of_the_net_without_the_option(tokens):
    nets = [made(out=3, each_step=False, vocabulary=VOCABULARY, padding=padding) for padding in (None, 0)]
    text = tokens.clamp_min(1)
    assert nets[0].state_dict().keys() == nets[1].state_dict().keys()
    torch.testing.assert_close(nets[0](text), nets[1](text), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("rule", ["mono_forward", "dfa"])
def test_local_rules_learn_the_same_with_more_padding(rule, tokens):
    """Their heads read features of 0 there. A longer window only adds zeros to them."""
    grads = []
    for extra in (0, 3):
        net = made((STEPS + extra,), out=3, each_step=False, vocabulary=VOCABULARY, padding=0, pool="mean")
        padded = torch.cat([tokens.clamp_min(1), torch.zeros(4, extra, dtype=torch.int64)], 1)
        padded[:, 4:] = 0
        batch = Batch(padded, torch.tensor([0, 1, 2, 0]))
        learner = bound(bpfree.rules.RULES[rule](), net, batch, Classify(3))
        matrices = [p for p in [*learner.parameters(), *learner.buffers()] if p.dim() == 2]
        for matrix in matrices:  # the columns of the first steps are the same
            torch.manual_seed(1)
            first = torch.randn(matrix.shape[0], 16 * STEPS, dtype=matrix.dtype)
            columns = min(first.shape[1], matrix.shape[1])
            matrix.data[:, :columns] = first[:, :columns]
        learner.gradients(net, Classify(3), batch, Noise(0))
        grads.append({name: p.grad for name, p in net.named_parameters()})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((STEPS, 2), {"padding": 0}, "net.padding: found 0 for samples that are numbers, allowed: tokens"),
        ((STEPS,), {"padding": 11}, "net.padding: found 11, allowed: a token, from 0 to 10"),
        ((STEPS,), {"padding": -1}, "net.padding: found -1"),
    ],
)
def test_bad_padding_is_refused(shape, options, message):
    with pytest.raises(UserError, match=message):
        made(shape, vocabulary=VOCABULARY, **options)
