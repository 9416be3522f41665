"""Follow samples of a NoProp run through inference, and judge the predictions after each step."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bpfree.data import Split
from bpfree.diffusion import DiffusionRule, State
from bpfree.inputs import Inputs, one_tensor
from bpfree.pictures.trained_run import TrainedRun
from bpfree.training.evaluation import mean_metrics

_STEPS = 11  # steps of a trail that are kept, the start among them
_LEAST, _MOST = 100, 2000  # samples that pictures use
_FLOPS = 100_000_000_000  # floating-point operations; a core does as many in about a second
_JUDGED_STEPS = 33


class Trail(NamedTuple):
    """Positions of N samples at S steps of their way through inference.

    Attributes:
        steps: S numbers of steps, 0 for the start, the last for the end.
        x: [N, ...], raw samples.
        y: [N], their labels, or [N, ...], what is to be rebuilt from them.
        z: [S, N, E], the noisy embedding that inference refines.
        outputs: [S, N, D], the scores that the rule would give if inference ended at that step.
    """

    steps: list[int]
    x: Tensor
    y: Tensor
    z: Tensor
    outputs: Tensor


class StepMetrics(NamedTuple):
    """A metric of the task after each step of inference: accuracy, or the loss if the task has no accuracy.

    Attributes:
        metric: its name.
        outputs: the metric of the rule's output if inference ended after a step, by kind of inference
            ("deterministic" or "stochastic") and by step, from 0 on.
        blocks: the metric of the scores of the block that ran last, by kind and by step, from 1 on.
        alone: the metric of one look at the sample without noise: block 1 alone, or a single step.
    """

    metric: str
    outputs: dict[str, dict[int, float]]
    blocks: dict[str, dict[int, float]]
    alone: float


def diffusion_rule(run: TrainedRun) -> DiffusionRule:
    """Return the rule of a NoProp run.

    Args:
        run: its rule must be a DiffusionRule.
    """
    assert isinstance(run.trainer.rule, DiffusionRule)
    return run.trainer.rule


def follow(run: TrainedRun, split: Split, count: int, *, stochastic: bool) -> Trail:
    """Follow the first `count` samples of a split through inference.

    Args:
        run: its rule is a DiffusionRule.
        split: raw samples and labels.
        count: most samples that are followed.
        stochastic: add noise at each step of inference.

    Returns:
        The trail at no more than 12 steps, in memory of the CPU.
    """
    rule = diffusion_rule(run)
    first = split.slice(0, min(count, len(split.y)))
    batch = next(run.batches(first).epoch())
    with run.trainer.evaluating():
        states = list(rule.walk(run.trainer.net, batch.tensor, stochastic=stochastic))
        steps = _spread(len(states), _STEPS)
        outputs = torch.stack([output_at(rule, states[step]).float().cpu() for step in steps])
    z = torch.stack([states[step].z.float().cpu() for step in steps])
    return Trail(steps, first.tensor, batch.y.cpu(), z, outputs)


def affordable(run: TrainedRun, split: Split) -> int:
    """Return how many samples one walk can take in about a second.

    Args:
        run: its rule is a DiffusionRule.
        split: the first sample is followed, to count floating-point operations.

    Returns:
        Between 100 and 2,000 on a CPU; 2,000 on a GPU.
    """
    if run.trainer.device.type != "cpu":
        return _MOST
    # `evaluating` comes first: the trainer tries its arithmetic when it is first used, and those products must not be
    # counted.
    with run.trainer.evaluating(), FlopCounterMode(display=False) as counter:
        follow(run, split, 1, stochastic=False)
    needed: int = counter.get_total_flops()
    return min(_MOST, max(_LEAST, _FLOPS // max(needed, 1)))


def output_at(rule: DiffusionRule, state: State) -> Tensor:
    """Return the scores [B, D] that the rule would give if inference ended in a state.

    Args:
        rule: reads the state.
        state: after some step. At the start no block has run, so the scores are those of z itself.
    """
    return rule.read(state.z) if state.scores is None else rule.conclude(iter([state]))


def judge_steps(run: TrainedRun, split: Split) -> StepMetrics:
    """Judge the predictions after each step, for both kinds of inference.

    Args:
        run: its rule is a DiffusionRule.
        split: samples come in the batches of an evaluation. Stochastic inference draws its noise by batch, so the last
            step has the metrics of `run.evaluate`.
    """
    rule = diffusion_rule(run)
    kinds = ("deterministic", "stochastic")

    def outputs(x: Inputs) -> dict[str, Tensor]:
        by_name: dict[str, Tensor] = {}
        with run.trainer.evaluating():
            for kind in kinds:
                states = list(rule.walk(run.trainer.net, one_tensor(x), stochastic=kind == "stochastic"))
                for step in _spread(len(states), _JUDGED_STEPS):
                    by_name[f"outputs {kind} {step}"] = output_at(rule, states[step])
                    if (scores := states[step].scores) is not None:
                        by_name[f"blocks {kind} {step}"] = scores
        return by_name

    curves: dict[str, dict[str, dict[int, float]]] = {of: {kind: {} for kind in kinds} for of in ("outputs", "blocks")}
    metric = "loss"
    for name, metrics in mean_metrics(run.task, run.batches(split).epoch(), outputs).items():
        of, kind, step = name.split()
        metric = "accuracy" if "accuracy" in metrics else "loss"
        curves[of][kind][int(step)] = metrics[metric]
    return StepMetrics(metric, curves["outputs"], curves["blocks"], curves["blocks"]["deterministic"][1])


def _spread(count: int, most: int) -> list[int]:
    """Return about `most` numbers below `count`, evenly spread, with 0, 1 and the last one among them."""
    spread = torch.linspace(0, count - 1, min(most, count)).round().int().tolist()
    return sorted({0, min(1, count - 1), *spread})
