"""Looking inside a NoProp run: the path of samples from noise to the answer, as figures and as pictures."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bpfree.data import Split
from bpfree.diffusion import DiffusionRule, LabelEmbedding, Schedule, State
from bpfree.inputs import Inputs, one_tensor
from bpfree.pictures.curves import plot_by_step, plot_embeddings, plot_losses, plot_schedules
from bpfree.pictures.denoising import animate_answers, animate_rebuilding, plot_answers, plot_rebuilding
from bpfree.tasks import Reconstruct
from bpfree.training.evaluation import mean_metrics

if TYPE_CHECKING:
    from bpfree.runs.run import Run

_STEPS = 11  # shown of a path, its start among them
_FOLLOWED = 200  # samples
_EMBEDDED = 300  # samples; t-SNE takes its time
_LEAST, _MOST = 100, 2000  # samples of which anything is drawn
_FLOPS = 100_000_000_000  # that a core does in about a second
_JUDGED_STEPS = 33


class Trail(NamedTuple):
    """Where samples are on their way through inference.

    Attributes:
        steps: S numbers of steps, 0 for the start, the last for the end.
        x: [N, ...], raw samples.
        y: [N], their labels, or [N, ...], what is to be rebuilt of them.
        z: [S, N, E].
        answers: [S, N, D], what the rule would answer there.
    """

    steps: list[int]
    x: Tensor
    y: Tensor
    z: Tensor
    answers: Tensor


class Steps(NamedTuple):
    """The metric of a task (accuracy, or the loss if it has none) after steps, by their number, 0 for the start.

    Attributes:
        metric: its name.
        answers: of what the rule would answer there, by kind of inference, "deterministic" or "stochastic".
        blocks: of what the block says that has just run, likewise, from step 1 on.
        alone: of one look at the sample without noise: block 1 alone, or a single step.
    """

    metric: str
    answers: dict[str, dict[int, float]]
    blocks: dict[str, dict[int, float]]
    alone: float


def follow(run: "Run", split: Split, count: int, *, stochastic: bool) -> Trail:
    """The path of the first `count` samples of a split, at no more than 11 steps, in memory of the CPU."""
    rule = _rule(run)
    first = split.take(torch.arange(min(count, len(split.y))))
    batch = next(run.batches(first).epoch())
    with run.trainer.evaluating():
        states = list(rule.walk(run.net, batch.tensor, stochastic=stochastic))
        steps = _thinned(len(states), _STEPS)
        answers = torch.stack([answer(rule, states[step]).float().cpu() for step in steps])
    z = torch.stack([states[step].z.float().cpu() for step in steps])
    return Trail(steps, first.tensor, batch.y.cpu(), z, answers)


def affordable(run: "Run", split: Split) -> int:
    """So many samples that one walk with them takes about a second on a core, between 100 and 2,000; on a GPU 2,000."""
    if run.trainer.device.type != "cpu":
        return _MOST
    with run.trainer.evaluating(), FlopCounterMode(display=False) as counter:  # in this order: arithmetic tries itself
        follow(run, split, 1, stochastic=False)
    needed: int = counter.get_total_flops()
    return min(_MOST, max(_LEAST, _FLOPS // max(needed, 1)))


def answer(rule: DiffusionRule, state: State) -> Tensor:
    """Scores [B, D] if inference ended here; at the start, what z reads as."""
    return rule.read(state.z) if state.scores is None else rule.conclude(iter([state]))


def judge_steps(run: "Run", split: Split) -> Steps:
    """How well the answers are after each step, of both kinds of inference.

    Samples come in the batches of an evaluation, so the noise of stochastic inference is that of one.
    """
    rule = _rule(run)
    kinds = ("deterministic", "stochastic")

    def outputs(x: Inputs) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        with run.trainer.evaluating():
            for kind in kinds:
                states = list(rule.walk(run.net, one_tensor(x), stochastic=kind == "stochastic"))
                for step in _thinned(len(states), _JUDGED_STEPS):
                    found[f"answers {kind} {step}"] = answer(rule, states[step])
                    if (scores := states[step].scores) is not None:
                        found[f"blocks {kind} {step}"] = scores
        return found

    curves: dict[str, dict[str, dict[int, float]]] = {of: {kind: {} for kind in kinds} for of in ("answers", "blocks")}
    metric = "loss"
    for name, metrics in mean_metrics(run.task, run.batches(split).epoch(), outputs).items():
        of, kind, step = name.split()
        metric = "accuracy" if "accuracy" in metrics else "loss"
        curves[of][kind][int(step)] = metrics[metric]
    return Steps(metric, curves["answers"], curves["blocks"], curves["blocks"]["deterministic"][1])


def draw_diffusion(run: "Run", folder: Path, split: Split | None) -> list[Path]:
    """What can be seen inside a run whose rule is a DiffusionRule.

    Args:
        run: trained.
        folder: gets the pictures; it is made.
        split: samples to look at; None for none.

    Returns:
        The paths of the pictures.
    """
    rule, written = _rule(run), []
    if any(name.startswith("loss/block") for record in run.metrics for name in record["train"]):
        written.append(plot_losses(run.metrics, folder / "loss_by_block.png"))
    schedule = getattr(rule, "schedule", None)
    if isinstance(schedule, Schedule):
        levels = getattr(rule, "levels", None)
        name = type(schedule).__name__.removesuffix("Schedule").lower()
        written.append(plot_schedules({name: schedule}, folder / "schedule.png", steps=levels and levels.steps))
    if split is None:
        return written
    which = "test samples" if split is run.test else "samples"
    split = split.take(torch.arange(min(affordable(run, split), len(split.y))))
    judged = judge_steps(run, split)
    path = folder / f"{judged.metric}_by_step.png"
    written.append(plot_by_step(judged, path, which=f"{len(split.y):,} {which}", unit=_unit(rule)))
    written += _draw_paths(run, folder, split, which)
    if isinstance(rule.embedding, LabelEmbedding):
        ends = follow(run, split, _EMBEDDED, stochastic=rule.inference == "stochastic")
        embeddings = rule.embedding.weight.detach().float().cpu()
        written.append(plot_embeddings(embeddings, ends.z[-1], ends.y, folder / "embeddings.png", which=which))
    return written


def _draw_paths(run: "Run", folder: Path, split: Split, which: str) -> list[Path]:
    """Still and moving pictures of samples on their way from noise; of what is rebuilt only if it is an image."""
    rule = _rule(run)
    trail = follow(run, split, _FOLLOWED, stochastic=True)
    unit = _unit(rule)
    still, moving = folder / "denoising.png", folder / "denoising.gif"
    if isinstance(run.task, Reconstruct):
        originals = as_images(run, trail.y)
        if originals is None:
            return []
        rebuilt = _on_unit_scale(run, torch.stack([run.task.decode(answers) for answers in trail.answers]))
        return [
            plot_rebuilding(originals, rebuilt, trail.steps, still, unit=unit),
            animate_rebuilding(originals, rebuilt, trail.steps, moving, unit=unit),
        ]
    assert isinstance(rule.embedding, LabelEmbedding)
    images = as_images(run, run.preprocess.target(trail.x))
    embeddings = rule.embedding.weight.detach().float().cpu()
    return [
        plot_answers(trail, images, still, which=which, unit=unit),
        animate_answers(trail, images, embeddings, moving, which=which, unit=unit),
    ]


def _rule(run: "Run") -> DiffusionRule:
    assert isinstance(run.trainer.rule, DiffusionRule)
    return run.trainer.rule


def _unit(rule: DiffusionRule) -> str:
    """What makes a step."""
    return "step" if rule.timed else "block"


def as_images(run: "Run", values: Tensor) -> Tensor | None:
    """Values [N, ...] as images [N, 1 or 3, H, W] in [0, 1], if they are images."""
    is_image = values.dim() == 4 and values.shape[1] in (1, 3)
    return _on_unit_scale(run, values.float()) if is_image else None


def _on_unit_scale(run: "Run", values: Tensor) -> Tensor:
    """From the range of the training samples to [0, 1]."""
    low, high = run.preprocess.limits
    return ((values - low) / max(high - low, torch.finfo(torch.float32).tiny)).nan_to_num().clamp(0, 1)


def _thinned(count: int, most: int) -> list[int]:
    """No more than about so many of the numbers below count: 0, 1 and the last are among them."""
    spread = torch.linspace(0, count - 1, min(most, count)).round().int().tolist()
    return sorted({0, min(1, count - 1), *spread})
