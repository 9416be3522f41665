"""Pictures of NoProp runs: that there is something on them, and that their figures are those of an evaluation."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

import bpfree
from bpfree.diffusion import SCHEDULES
from bpfree.nets import Denoiser
from bpfree.pictures.curves import all_schedules, plot_losses, plot_schedules, principal
from bpfree.pictures.denoising import plane_of
from bpfree.pictures.draw import draw
from bpfree.pictures.noprop import draw_diffusion
from bpfree.pictures.plots import write_figure
from bpfree.pictures.trail import affordable, follow, judge_steps
from tests.helpers import same

OWN = {"name": "denoiser", "blocks": 3, "width": 16}
ONE = {"blocks": 1, "head": {"timed": True}}
TIMED = {"name": "denoiser", **ONE, "width": 24}
RUNS = {
    "own": ("noprop_dt", OWN, {}),
    "local": ("noprop_dt", {**OWN, "trunk": "local"}, {}),
    "stochastic": ({"name": "noprop_dt", "inference": "stochastic"}, OWN, {}),
    "ct": ({"name": "noprop_ct", "steps": 4}, TIMED, {"precision": "bfloat16"}),
    "fm": ({"name": "noprop_fm", "steps": 40}, TIMED, {}),
    "hybrid": ("noprop_hybrid", {**OWN, "head": {"predicts": "embedding"}, "embedding_dim": 12}, {}),
    "rebuilt": ({"name": "noprop_fm", "steps": 4}, TIMED, {"task": "reconstruct"}),
}
ALWAYS = {"training.png", "loss_by_block.png", "denoising.png", "denoising.gif"}


@pytest.fixture(scope="module")
def runs():
    """Each trained for two epochs when first asked for."""
    trained = {}

    def run(name):
        if name not in trained:
            rule, net, options = RUNS[name]
            trained[name] = bpfree.fit(net, "digits", rule, epochs=2, **options)
        return trained[name]

    return run


def frames(path):
    with Image.open(path) as film:
        for number in range(film.n_frames):
            film.seek(number)
            yield np.asarray(film.convert("RGB"))


def check_pictures(paths):
    """They are there, of sensible size, not blank, and what should move does."""
    for path in paths:
        with Image.open(path) as image:
            assert min(image.size) >= 60
            assert max(image.size) < 2500
            assert np.asarray(image.convert("L")).std() > 10, path.name
        if path.suffix == ".gif":
            assert path.stat().st_size < 1e6
            shown = list(frames(path))
            assert len(shown) > 1
            assert all((a != b).any() for a, b in pairwise(shown))


@pytest.mark.parametrize("name", [name for name in RUNS if name != "stochastic"])
def test_every_picture_shows_something(name, runs, tmp_path):
    """And the run is left as it was."""
    run = runs(name)
    few = run.test.take(torch.arange(60))
    before = {key: value.clone() for key, value in run.net.state_dict().items()}
    modes, random = [m.training for m in run.net.modules()], torch.get_rng_state()
    paths = draw(run, tmp_path / "plots", few)
    assert same(run.net.state_dict(), before)
    assert modes == [m.training for m in run.net.modules()]
    assert torch.equal(random, torch.get_rng_state())
    assert {path.name for path in paths} == {path.name for path in (tmp_path / "plots").iterdir()}
    if name == "rebuilt":
        expected = {"loss_by_step.png", "reconstructions.png"}
    else:
        expected = {"accuracy_by_step.png", "embeddings.png", "confusion.png"}
    schedule = set() if name in ("fm", "rebuilt") else {"schedule.png"}
    wrong = {"wrong.png"}  # where there is any
    assert {path.name for path in paths} - wrong == ALWAYS | expected | schedule
    check_pictures(path for path in paths if path.name != "reconstructions.png")


@pytest.mark.parametrize("name", RUNS)
def test_accuracies_by_step_are_those_of_an_evaluation(name, runs):
    """The last step is what the run answers, and the first block alone is what its controls say."""
    run = runs(name)
    steps, controls = judge_steps(run, run.test), run.extra_metrics()
    assert steps.metric == ("loss" if name == "rebuilt" else "accuracy")
    ours, other = ("stochastic", "deterministic") if name == "stochastic" else ("deterministic", "stochastic")
    last = max(steps.outputs[ours])
    assert last == {"fm": 40, "ct": 4, "rebuilt": 4}.get(name, 3)
    assert steps.outputs[ours][last] == run.evaluate()[steps.metric] == run.result["test"][steps.metric]
    assert steps.outputs[other][last] == controls[other][steps.metric]
    assert steps.alone == controls[run.trainer.rule.first][steps.metric]
    for kind in ("deterministic", "stochastic"):
        assert list(steps.blocks[kind]) == list(steps.outputs[kind])[1:]
        assert list(steps.outputs[kind])[:2] == [0, 1]


def test_a_path_begins_with_noise_and_ends_with_the_answer(runs):
    run = runs("ct")
    trail = follow(run, run.test, 100, stochastic=True)
    assert trail.steps == [0, 1, 2, 3, 4]
    assert trail.z.shape == (5, 100, 10)
    assert float(trail.z[0].std()) == pytest.approx(1, abs=0.05)
    assert torch.equal(trail.y, run.test.y[:100])
    ended = follow(run, run.test, len(run.test.y), stochastic=False)
    torch.testing.assert_close(ended.outputs[-1], run.scores(run.test.x))
    assert len(follow(runs("fm"), run.test, 5, stochastic=True).steps) == 12, "of 41, eleven and the first step"


def test_large_nets_are_looked_at_with_fewer_samples(runs, monkeypatch):
    run = runs("own")
    assert affordable(run, run.test) == 2000
    monkeypatch.setattr("bpfree.pictures.trail._FLOPS", 200_000)
    assert affordable(run, run.test) == 100
    flops = 2 * sum(module.weight.numel() for module in run.net.modules() if isinstance(module, torch.nn.Linear))
    read = 2 * 10 * 10 * 4  # what is read at the four places of the path
    monkeypatch.setattr("bpfree.pictures.trail._FLOPS", 1000 * (flops + read))
    assert affordable(run, run.test) == 1000


def test_without_samples_there_are_the_pictures_that_need_none(runs, tmp_path):
    found = {path.name for path in draw_diffusion(runs("own"), tmp_path, None)}
    assert found == {"loss_by_block.png", "schedule.png"}


@pytest.mark.parametrize(
    ("rule", "net", "classes", "samples"),
    [
        ("noprop_dt", {"blocks": 1}, 2, 1),
        ("noprop_dt", {"blocks": 2}, 13, 3),
        ({"name": "noprop_dt", "order": "sequential"}, {"blocks": 2, "trunk": "shared"}, 2, 5),
        ({"name": "noprop_fm", "embedding": "learned"}, {**ONE, "embedding_dim": 1}, 3, 2),
        ({"name": "noprop_ct", "embedding": "prototype"}, {**ONE, "embedding_dim": 64}, 4, 30),
    ],
)
def test_few_flat_samples_of_one_class_in_double_precision(rule, net, classes, samples, tmp_path, digits_data):
    """No images, one label, few points for t-SNE, one or many classes, embeddings of one dimension."""
    x = digits_data.train.x[:80].flatten(1).double() / 16
    kind = bpfree.rules.RULES[rule if isinstance(rule, str) else rule["name"]]
    options = {} if isinstance(rule, str) else {key: value for key, value in rule.items() if key != "name"}
    torch.manual_seed(0)
    own = Denoiser((64,), classes, width=8, **net).double()
    test = (x[:samples], torch.ones(samples, dtype=torch.int64))
    run = bpfree.fit(own, (x, torch.arange(80) % classes), kind(**options), epochs=2, test=test, classes=classes)
    check_pictures(draw_diffusion(run, tmp_path, run.test))


def test_an_untrained_net_whose_ends_are_all_the_same(runs, tmp_path):
    run = bpfree.fit(OWN, "digits", "noprop_dt", epochs=1, optimizer={"name": "sgd", "lr": 1e-9})
    with torch.no_grad():
        for p in run.net.parameters():
            p.zero_()
    check_pictures(draw_diffusion(run, tmp_path, run.test.take(torch.arange(20))))


def test_all_schedules_side_by_side(tmp_path):
    schedules = all_schedules()
    assert list(schedules) == list(SCHEDULES)
    check_pictures([write_figure(plot_schedules(schedules), tmp_path / "schedules.png")])
    random = torch.get_rng_state()
    again = all_schedules()
    assert torch.equal(random, torch.get_rng_state())
    t = torch.linspace(0, 1, 5)
    assert torch.equal(schedules["learned"].abar(t), again["learned"].abar(t))


def test_losses_that_are_no_longer_positive_are_drawn_too(tmp_path):
    history = [{"epoch": 1, "train": {"loss/block1": 0.0, "loss/block2": 0.1, "loss/trunk1": 1.0}}]
    check_pictures([write_figure(plot_losses(history), tmp_path / "losses.png")])


def test_principal_components_are_those_of_sklearn():
    from sklearn.decomposition import PCA

    points = torch.randn(40, 7, generator=torch.Generator().manual_seed(0)).double()
    expected = PCA(2).fit_transform(points.numpy())
    np.testing.assert_allclose(np.abs(principal(points).numpy()), np.abs(expected), atol=1e-9)


def test_embeddings_lie_on_a_circle_where_that_can_be():
    def places(embeddings):
        middle, plane = plane_of(embeddings)
        return (embeddings - middle) @ plane

    torch.testing.assert_close(places(3 * torch.eye(10)).norm(dim=1), torch.ones(10))
    line = places(torch.arange(5.0).unsqueeze(1))
    assert float(line[:, 0].diff().abs().min()) == pytest.approx(1), "in one dimension they stay as they are"
