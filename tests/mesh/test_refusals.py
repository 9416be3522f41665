"""What several processes cannot share is refused, with the reason and the cure."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bpfree import UserError
from bpfree.local.parts import EarlierSegments
from bpfree.mesh.lane import Lane, even_runs
from bpfree.mesh.members import Members
from bpfree.mesh.share import Share
from bpfree.nets import NETS
from bpfree.rules import RULES
from bpfree.runs import tensor_files
from bpfree.training.mesh import MeshSpec, refuse_other_batches
from tests.helpers import IN_SHAPE, bound, net_for


class Processes:
    """A group of which one process is here; the others have what the test says."""

    def __init__(self, size: int, rank: int = 0, others: list[object] | None = None) -> None:
        self.size, self.rank, self.others = size, rank, others

    def all_of(self, value):
        return [value, *(self.others or [])]


@pytest.mark.parametrize(
    ("rule", "options", "words"),
    [
        ("dfa", {}, "DFA cannot be split so. Allowed: data"),
        ("backprop", {}, "Backprop cannot be split so"),
        ("forward_forward", {"negatives": "hard"}, "wait for the output of the net"),
        ("noprop_dt", {"readout_from": "chain"}, "needs all blocks"),
        ("noprop_dt", {"embedding": "learned"}, "learns from all blocks"),
        ("noprop_hybrid", {}, "learns from all blocks"),
        ("es", {}, "ES cannot be split so. Allowed: population, data"),
    ],
)
def test_blocks_that_need_each_other(rule, options, words, batch):
    net = net_for(rule)
    learner = bound(RULES[rule](**options), net, batch)
    with pytest.raises(UserError, match=words):
        learner.refuse_mesh("blocks", net)


@pytest.mark.parametrize(
    ("trunk", "order", "words"),
    [("shared", "random", "only one process would work"), ("local", "all", "have one order")],
)
def test_trunks_that_blocks_cannot_share(trunk, order, words, batch):
    torch.manual_seed(0)
    net = NETS["denoiser"](IN_SHAPE, 10, width=16, blocks=3, trunk=trunk).double()
    rule = bound(RULES["noprop_dt"](order=order), net, batch)
    with pytest.raises(UserError, match=words):
        rule.refuse_mesh("blocks", net)


def test_members_whose_score_is_not_a_mean_of_rows(batch):
    net = net_for("es")
    with pytest.raises(UserError, match=r"batch norm.*train.mesh=population"):
        RULES["es"]().refuse_mesh("data", net)
    with pytest.raises(UserError, match="cannot be averaged"):
        RULES["es"](objective="macro_f1").refuse_mesh("data", net)
    RULES["es"](objective="accuracy").refuse_mesh("data", nn.Linear(2, 2))


def test_more_processes_than_there_is_work():
    with pytest.raises(UserError, match=r"3 processes for a net of 2 parts"):
        Lane(Processes(3), [1.0, 1.0], messages=True)
    with pytest.raises(UserError, match=r"a batch of 2 samples for 3 processes"):
        Share.of(Processes(3), 2)
    with pytest.raises(UserError, match=r"2 members or directions for 3 processes"):
        Members(Processes(3)).bounds(2)
    with pytest.raises(UserError, match=r"allowed: only with blocks"):
        MeshSpec("data", replicas=2).check()


def test_mirrored_members_stay_together_where_there_are_enough_of_them():
    assert Members(Processes(3)).bounds(8, together=2) == [(0, 2), (2, 4), (4, 8)]
    assert Members(Processes(3)).bounds(4, together=2) == [(0, 1), (1, 2), (2, 4)]


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
@pytest.mark.parametrize("total", [7, 8, 31])
def test_shares_are_even_and_leave_no_row_out(processes, total):
    shares = [Share.of(Processes(processes, rank), total) for rank in range(processes)]
    rows = [row for share in shares for row in range(total)[share.rows]]
    assert rows == list(range(total))
    assert shares[0].counts == [share.stop - share.start for share in shares]
    assert max(shares[0].counts) - min(shares[0].counts) <= 1
    assert sum(share.weight for share in shares) == pytest.approx(1)


def test_runs_have_the_smallest_largest_cost():
    """Against all ways to split."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        costs = torch.randint(1, 9, (6,), generator=generator).tolist()
        cuts = torch.combinations(torch.arange(1, 6), 2).tolist()
        best = min(max(sum(costs[a:b]) for a, b in zip([0, *cut], [*cut, 6], strict=True)) for cut in cuts)
        bounds = even_runs(costs, 3)
        assert [bounds[0][0], bounds[-1][1]] == [0, 6]
        assert all(a < b for a, b in bounds)
        assert max(sum(costs[a:b]) for a, b in bounds) == best


def test_processes_with_different_batches(batch):
    own = [(32, 1, 8, 8, "1.0"), (32, "2.0")]
    with pytest.raises(UserError, match=r"bpfree.mesh.average_gradients"):
        refuse_other_batches(Processes(2, others=[own]), batch)
    same = [(*part.shape, repr(float(part.double().sum()))) for part in (batch.x, batch.y)]
    refuse_other_batches(Processes(2, others=[same]), batch)


class Looks(nn.Module):
    """A net whose forward depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        h = self.first(x)
        return self.second(h if h.sum() > 0 else -h)


def later(earlier: EarlierSegments) -> None:
    """Fail behind the segments that are skipped."""
    earlier.are_over = True
    raise RuntimeError("of its own")


def test_a_net_that_looks_at_values_is_refused_with_the_cure():
    net, x = Looks(), torch.randn(2, 4)
    expected = net(x)
    earlier = EarlierSegments(net, ["first.weight", "first.bias"])
    with pytest.raises(UserError, match=r"forward needs their values .*train.mesh=data"), earlier.skipped():
        net(x)
    assert torch.equal(net(x), expected), "the net is as it was"
    with pytest.raises(ZeroDivisionError), earlier.skipped():
        raise ZeroDivisionError
    with pytest.raises(RuntimeError, match="of its own"), earlier.skipped():
        later(earlier)


def test_parts_of_a_checkpoint_must_be_complete(tmp_path):
    name = tensor_files.NAMES[0]
    for part in (1, 2, 3):
        save_file({f"layer{part}": torch.full((2,), float(part))}, tmp_path / tensor_files.part_name(name, part, 3))
    assert {key: float(t[0]) for key, t in tensor_files.read(tmp_path, name).items()} == {
        "layer1": 1.0,
        "layer2": 2.0,
        "layer3": 3.0,
    }
    (tmp_path / tensor_files.part_name(name, 2, 3)).unlink()
    assert tensor_files.files_of(tmp_path, name) == []
    (tmp_path / tensor_files.part_name(name, 2, 4)).touch()
    assert tensor_files.files_of(tmp_path, name) == []
