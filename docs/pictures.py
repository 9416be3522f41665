"""Draw the pictures of docs/rules/noprop.md, from a training on the embedded digits.

    python docs/pictures.py

They go to docs/images/. Colours: one for each schedule, or for each kind of inference.
"""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

import bpfree
from bpfree.diffusion import CosineSchedule, DiffusionRule, LearnedSchedule, LinearSchedule, OneHot, Schedule, State
from bpfree.runs.run import Run
from bpfree.tasks import Classify

IMAGES = Path(__file__).parent / "images"
BLOCKS = 10
CLASSES = 10


def main() -> None:
    """Train once and draw all."""
    torch.set_num_threads(1)
    IMAGES.mkdir(exist_ok=True)
    save(schedules(), "noprop_schedules.png")
    run = trained()
    save(path(run), "noprop_path.png")
    save(blocks(run), "noprop_blocks.png")


def trained() -> Run:
    """NoProp-DT with ten small blocks that share nothing."""
    return bpfree.fit(
        {"name": "denoiser", "blocks": BLOCKS, "width": 64},
        "digits",
        "noprop_dt",
        epochs=20,
        optimizer={"name": "adamw", "lr": 4e-3},
        schedule="onecycle",
        batch_size=64,
        clip=1.0,
    )


def schedules() -> Figure:
    """How abar rises, what a block weighs by it, and how much of the label it gives away."""
    torch.manual_seed(0)  # the learned one starts at random
    known: dict[str, Schedule] = {
        "cosine": CosineSchedule(),
        "linear": LinearSchedule(),
        "learned, at first": LearnedSchedule(abar_max=0.95).double(),
    }
    figure = Figure(figsize=(10, 3), layout="constrained")
    share, weight, told = figure.subplots(1, 3)
    times = torch.linspace(0, 1, 200, dtype=torch.float64)
    turns = range(1, BLOCKS + 1)
    for name, schedule in known.items():
        levels = schedule.levels(BLOCKS)
        share.plot(times.numpy(), schedule.abar(times).detach().numpy(), label=name)
        weight.plot(turns, levels.dsnr.numpy(), "o-", ms=3)
        told.plot(turns, [told_by_z(float(abar)) for abar in levels.abar[:-1]], "o-", ms=3)
    share.set(xlabel="t", ylabel="abar, share of the label in z")
    weight.set(xlabel="block", ylabel="SNR_t - SNR_t-1, its weight", yscale="log")
    told.set(xlabel="block", ylabel="right by its input z alone", ylim=(0, 1.03))
    told.axhline(1 / CLASSES, color="grey", lw=0.8, ls=":")
    share.legend(fontsize=8)
    return figure


def told_by_z(abar: float, samples: int = 20_000) -> float:
    """How often the embedding nearest to z ~ q(z|y) is that of y: one-hot embeddings, no image."""
    embedding, noise = OneHot(Classify(CLASSES), CLASSES, 1), bpfree.Noise(0)
    y = torch.arange(samples) % CLASSES
    z = abar**0.5 * embedding.weight[y] + (1 - abar) ** 0.5 * noise.randn(samples, CLASSES)
    return float((embedding.nearest(z).argmax(1) == y).float().mean())


def walk(run: Run, x: Tensor, *, stochastic: bool) -> list[State]:
    """The path of raw samples through the blocks."""
    rule = run.trainer.rule
    assert isinstance(rule, DiffusionRule)
    with run.trainer.evaluating():
        return list(rule.walk(run.net, run.preprocess(x), stochastic=stochastic))


def path(run: Run) -> Figure:
    """The way of the test digit that block 1 is least sure of, from t = 0 to T."""
    assert run.test is not None
    x, y = run.test
    first = walk(run, x, stochastic=False)[1].scores
    assert first is not None
    unsure = int(first.softmax(1).amax(1).argmin())
    figure = Figure(figsize=(8.5, 3.1), layout="constrained")
    digit, *maps = figure.subplots(1, 3, width_ratios=[1, 2, 2])
    digit.imshow(x[unsure, 0].numpy(), cmap="gray_r")
    digit.set(title=f"a {int(y[unsure])}", xticks=[], yticks=[])
    for axes, stochastic in zip(maps, (False, True), strict=True):
        z = torch.cat([state.z for state in walk(run, x[unsure : unsure + 1], stochastic=stochastic)])
        shown = axes.imshow(z.T.numpy(), cmap="RdBu_r", vmin=-1.5, vmax=1.5, aspect="auto")
        axes.set(title="stochastic" if stochastic else "deterministic", xlabel="t", ylabel="component of z")
        axes.set(xticks=range(0, BLOCKS + 1, 2), yticks=range(CLASSES))
    figure.colorbar(shown, ax=maps)
    return figure


def blocks(run: Run) -> Figure:
    """How often each block is right on test digits in the chain, and whom it believes where image and z disagree."""
    assert run.test is not None
    x, y = run.test
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    chain, doubt = figure.subplots(1, 2)
    turns = range(1, BLOCKS + 1)
    for stochastic in (False, True):
        scores = [state.scores for state in walk(run, x, stochastic=stochastic)[1:]]
        right = [accuracy(s, y) for s in scores if s is not None]
        chain.plot(turns, right, "o-", ms=3, label="stochastic" if stochastic else "deterministic")
    chain.plot(turns, with_label(run, y, y), "s--", ms=3, color="grey", label="z drawn with the label: no result")
    chain.set(xlabel="block", ylabel="right on test digits")
    chain.legend(fontsize=8)
    wrong = (y + 1) % CLASSES
    doubt.plot(turns, with_label(run, wrong, y), "o-", ms=3, color="C2", label="says what the image shows")
    doubt.plot(turns, with_label(run, wrong, wrong), "o-", ms=3, color="C3", label="says what z was drawn with")
    doubt.set(xlabel="block", ylabel="z drawn with a wrong label", ylim=(-0.03, 1.03))
    doubt.legend(fontsize=8)
    return figure


def with_label(run: Run, label: Tensor, answer: Tensor) -> list[float]:
    """How often block t gives the answer when its z is drawn with a label, z ~ q(z_{t-1}|label), as in training."""
    rule, net = run.trainer.rule, run.net
    assert isinstance(rule, DiffusionRule)
    assert run.test is not None
    x = run.preprocess(run.test.x)
    found = []
    with run.trainer.evaluating():
        u = rule.embedding(bpfree.Batch(x, label))
        for t, (trunk, head) in enumerate(zip(net.trunks, net.heads, strict=True)):
            eps = bpfree.Noise(0).fold("picture", t).randn(*u.shape)
            found.append(accuracy(head(trunk(x), rule.levels.posterior(t, u, eps)), answer))
    return found


def accuracy(scores: Tensor, y: Tensor) -> float:
    """The share of samples whose highest score is the right one."""
    return float((scores.argmax(1) == y).float().mean())


def save(figure: Figure, name: str) -> None:
    """As a small PNG that does not depend on the day."""
    figure.savefig(IMAGES / name, dpi=90, metadata={"Software": None})


if __name__ == "__main__":
    main()
