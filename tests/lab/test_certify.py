"""The certificate of every rule of the library, and what each measurement sees."""

from inspect import signature

import pytest
import torch

import bpfree
from bpfree.diffusion import DiffusionRule
from bpfree.nets import NETS
from bpfree.rules import RULES
from bpfree.types import Batch
from tests.helpers import IN_SHAPE, TASK, VIT, denoiser_for

HIDDEN = [14, 13, 12, 11]


def net_for(rule="backprop", **options):
    """A net of five layers (or four blocks), enough to tell memory that grows with depth from memory that does not."""
    torch.manual_seed(0)
    if issubclass(RULES[rule], DiffusionRule):
        shape = {"width": 16, **denoiser_for(rule), **options}
        shape |= {} if shape["blocks"] == 1 else {"blocks": options.get("blocks", 4)}
        return NETS["denoiser"](IN_SHAPE, 10, **shape)
    if RULES[rule].needs_net == "vit":
        return NETS["vit"](IN_SHAPE, 10, **VIT)
    return NETS["mlp"](IN_SHAPE, 10, **{"hidden": HIDDEN, "activation": "tanh", "batch_norm": True, **options})


@pytest.fixture
def batch(batch):
    return Batch(batch.x.float(), batch.y)


def certified(rule, batch, net=None):
    name = rule if isinstance(rule, str) else getattr(rule, "get", lambda _: "backprop")("name")
    return bpfree.certify((net or net_for(name)).to(batch.device), rule, TASK, batch)


OPTIONS = [
    *({"name": name} for name in RULES),
    {"name": "fa", "feedback": "aligned"},
    {"name": "dfa", "memory": "flat"},
    {"name": "dfa", "feedback": "aligned", "memory": "flat"},
    {"name": "dfa", "error": "features"},
    {"name": "grape", "memory": "flat", "together": True},
    {"name": "grape", "backprop_every": 1},
    {"name": "local", "backward": "sign"},
    {"name": "mono_forward", "read": "sum"},
    {"name": "predsim", "beta": 0.5},
    {"name": "forward_forward", "negatives": "even"},
    {"name": "cwcomp", "read": "last"},
    {"name": "noprop_dt", "order": "random"},
    {"name": "noprop_dt", "order": "sequential"},
    {"name": "noprop_dt", "embedding": "prototype"},
    {"name": "noprop_fm", "embedding": "learned", "draws": 3},
    {"name": "noprop_ct", "draws": 2},
    {"name": "forward_gradient", "directions": 2},
    {"name": "es", "evaluator": "loop", "population": 8},
    {"name": "es", "evaluator": "vmap", "population": 8},
    {"name": "eggroll", "evaluator": "lowrank", "objective": "accuracy"},
]


@pytest.mark.parametrize("rule", OPTIONS, ids=lambda rule: "-".join(map(str, rule.values())))
def test_every_rule_keeps_what_it_says(rule, batch):
    own = {"embedding_dim": 64} if rule.get("embedding") == "prototype" else {}
    own |= {"width": 20} if rule.get("draws") else {}
    small = {"population": 8} if "population" in signature(RULES[rule["name"]]).parameters else {}
    found = certified(small | rule, batch, net_for(rule["name"], **own))
    assert found.violations == []
    assert found.unmeasured == []
    assert found.measured == found.declared
    assert all(not objective.disagrees for objective in found.measurements.objectives)
    assert (found.declared.through == "nothing") == (not RULES[rule["name"]].needs_derivatives)


DEPTH = len(HIDDEN) + 1


@pytest.mark.parametrize(
    ("rule", "chain"),
    [
        ("backprop", DEPTH),
        ("fa", DEPTH),  # its own autograd function stands for a layer
        ("frsf", DEPTH),
        ("forward_gradient", DEPTH),  # forwards
        ("dfa", 1),
        ("drtp", 1),
        ("mono_forward", 1),
        ("predsim", 1),
        ("forward_forward", 1),
        ("pepita", 1),
        ("eggroll", 0),
        ("recombine", 0),
    ],
)
def test_the_chain_is_counted_in_layers(rule, chain, batch):
    found = certified(rule, batch)
    assert found.chain == chain
    assert found.measurements.structure.depth == DEPTH


@pytest.mark.parametrize(("trunk", "chain"), [("own", 6), ("shared", 6), ("local", 1)])
@pytest.mark.parametrize("rule", ["noprop_dt", "noprop_ct"])
def test_noprop_is_differentiated_through_a_block_or_a_stage(rule, trunk, chain, batch):
    found = certified(rule, batch, net_for(rule, trunk=trunk))
    assert found.chain == chain  # the path of z: embed, two of the residual, three of the join; of a stage: one layer
    assert found.ok
    parts, depends = found.measurements.structure.parts, found.measurements.dependencies.depends
    if rule == "noprop_ct":  # the only block is the whole net, so each layer counts as a part
        assert found.measured.through == ("part" if trunk == "local" else "net")
    else:
        assert next(iter(parts)) == ("trunks.0.1" if trunk == "local" else "trunks.0+heads.0")
        assert len(parts) == 4 + 2 * (trunk == "local")
    if trunk == "shared":  # the others read the features of the first
        readers = [layer for layer, on in depends.items() if "trunks.0.1" in on and layer.startswith("heads")]
        assert len(readers) == (6 * 4 if rule == "noprop_dt" else 7)  # with the clock
        assert not any("trunks.0.1" in objective.moves for objective in found.measurements.objectives[1:])


def test_segments_of_several_layers_are_chains_of_as_many(batch):
    rule = RULES["mono_forward"](taps=["act2", "act4"])
    found = certified(rule, batch)
    assert found.measurements.structure.parts == {"act2": ("fc1", "fc2"), "act4": ("fc3", "fc4"), "output": ("fc5",)}
    assert found.chain == 2
    assert found.ok
    assert found.measured.transports == "none"
    transport = found.measurements.dependencies.transport
    assert {i: list(read) for i, read in transport.items()} == {"fc1": ["fc2"], "fc3": ["fc4"]}, "within parts"


def test_what_waits_for_what(batch):
    def dependencies(rule):
        return certified(rule, batch).measurements.dependencies

    assert all(later[-1] == "fc5" for later in list(dependencies("dfa").waits.values())[:-1])
    hard = dependencies({"name": "forward_forward", "negatives": "hard"})
    assert all(later[-1] == "fc5" for later in list(hard.waits.values())[:-1]), "the output layer draws the negatives"
    assert not any(dependencies({"name": "forward_forward", "negatives": "even"}).waits.values())
    assert not any(dependencies("mono_forward").waits.values())
    assert dependencies("mono_forward").depends["fc3"] == ["fc1", "fc2", "fc3"]


@pytest.mark.parametrize(("rule", "kind"), [("backprop", "weights"), ("usf", "signs"), ("brsf", "signs"), ("fa", None)])
def test_what_the_way_back_reads(rule, kind, batch):
    transport = certified(rule, batch).measurements.dependencies.transport
    assert transport == ({f"fc{i}": {f"fc{j}": kind for j in range(i + 1, 6)} for i in range(1, 5)} if kind else {})


def test_activations_pile_up_or_do_not(batch):
    """On layers of equal width, backprop's curve rises by the same amount for each layer; a local rule's stays flat."""

    def memory_of(rule, depth):
        return certified(rule, batch, net_for(hidden=[32] * depth, batch_norm=False)).measurements.memory

    for depth in (4, 8):
        memory = memory_of("backprop", depth)
        sizes = dict(memory.curve)
        steps = {b - a for a, b in zip(list(sizes.values())[1:-2], list(sizes.values())[2:-1], strict=True)}
        assert len(steps) == 1
        assert sizes[f"fc{depth + 1}"] > 0.8 * memory.peak_bytes, "all of it is there when the output is"
    assert memory_of("backprop", 8).peak_bytes > 1.6 * memory_of("backprop", 4).peak_bytes
    assert memory_of("mono_forward", 8).peak_bytes == memory_of("mono_forward", 4).peak_bytes
    flat, fast = ({"name": "dfa", "memory": memory} for memory in ("flat", "fast"))
    assert memory_of(flat, 8).peak_bytes == memory_of(flat, 4).peak_bytes < memory_of(fast, 4).peak_bytes
    assert memory_of("eggroll", 8).grows is False


def test_three_parts_are_too_few_to_tell_whether_memory_grows(batch):
    found = certified({"name": "dfa", "memory": "flat"}, batch, net_for(hidden=[14, 13]))
    assert found.measurements.grows is None
    assert found.violations == []
    (line,) = found.unmeasured
    assert line.startswith("memory: declared flat, but 3 of 3 parts are in memory at once, and nobody can tell")
    assert not found.ok, "flat was declared"
    assert certified("dfa", batch, net_for(hidden=[14, 13])).ok, "and here it was not"
    assert certified("drtp", batch, net_for(hidden=[14, 13])).measured.memory == "flat", "the first is free by then"


def test_four_parts_at_once_are_flat_if_more_blocks_do_not_take_more(batch):
    """The trunk's features and the neighbours of the block at work, at any depth."""
    for blocks in (4, 6):
        memory = certified(
            "noprop_linear", batch, net_for("noprop_linear", trunk="local", blocks=blocks)
        ).measurements.memory
        assert memory.parts == blocks + 2
        assert memory.parts_at_once == 4
        assert memory.grows is False
