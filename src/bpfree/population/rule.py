"""The base class of the rules that never differentiate a net: options, members, scores, and the step."""

import logging
import math
from dataclasses import replace
from typing import Any, ClassVar, Literal, NamedTuple, TypedDict, Unpack, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bpfree.errors import UserError, check_choice, check_positive
from bpfree.grad import add_gradients, trainable
from bpfree.inputs import Inputs, main_input
from bpfree.mesh import own_members, share_of_batch
from bpfree.nets.acceptance import refuse_wrapped
from bpfree.noise import Noise
from bpfree.population.behaviour import Behaviour, State, study
from bpfree.population.choice import EvaluatorName, choose
from bpfree.population.evaluators import Evaluator, Judge
from bpfree.population.generation import Generation
from bpfree.population.members import Member
from bpfree.population.perturbation import Perturbation
from bpfree.population.score import OBJECTIVES, Score, ScoreFunction
from bpfree.population.shaping import Shaping
from bpfree.population.statistics import learn_state, members, uncompiled
from bpfree.rule import Rule
from bpfree.tasks.base import metrics_of
from bpfree.types import Batch, Scalars, Task

log = logging.getLogger(__name__)


class Running(TypedDict, total=False):
    """The options that every BlackBoxRule takes beside its own; see `BlackBoxRule` for their meaning."""

    evaluator: EvaluatorName | Literal["auto"]
    objective: str | ScoreFunction
    maximize: bool | None
    max_memory: float | None


RUNNING: Running = {"evaluator": "auto", "objective": "loss", "maximize": None, "max_memory": None}


class _Chosen(NamedTuple):
    """The evaluator that was chosen for a net, valid as long as the same parameters are trained."""

    net: nn.Module
    trained: list[int]
    behaviour: Behaviour
    evaluator: Evaluator


class BlackBoxRule(Rule):
    """A rule that tries perturbed copies of the parameters and never differentiates the net.

    Member i has the parameters theta + sigma E_i. `.grad` becomes sum_i w_i E_i / (P sigma), where the weights w follow
    from the members' scores. A member is stored as a key and a sign, and its noise is drawn again when it is needed. So
    the memory is that of inference plus a few times the parameters, for any population.

    Members run without dropout, and batch norm uses their own minibatch as in training. Layers that learn a state in
    training mode (running statistics, the vectors of spectral norm) learn it once in each step, in a pass of the
    unperturbed net; members do not change it. Random numbers that `forward` draws are the same for all members of a
    step. A net whose output depends on other state is refused.

    Args:
        perturbation: the distribution of the noise E.
        shaping: scores [P] -> weights [P].
        population: P, the number of members.
        sigma: standard deviation of a perturbed parameter.
        sigma_decay: the factor by which sigma is multiplied after each step.
        mirrored: True for members in pairs +E, -E; P must be even.
        evaluator: the way to run members: one by one ("loop", or "in_place" without a copy of the parameters), side by
            side ("vmap"), or side by side with shared products for noise of low rank ("lowrank"). "auto", the default,
            times the evaluators that can run the net before the first step. On a GPU it times nothing: it takes
            "lowrank", "vmap" or "loop", the first of them that can run the net.
        objective: the score of a member: "loss", the task's loss and the default, "accuracy", "macro_f1", or a function
            (outputs [B, D], targets) -> score, which need not be smooth. A member with the score NaN is the worst.
        maximize: the direction of an objective that is a function: true if high scores are good.
        max_memory: MiB that members which run side by side may take together, in "vmap" with their parameters. For
            "loop" and "in_place", MiB that the samples of one member may take: the minibatch is then split into slices,
            unless the net mixes its samples. Default: what fits in a processor's cache; on a GPU a quarter of its free
            memory, at most 1 GiB, and no slices.
    """

    takes_soft_labels: ClassVar[bool] = True
    needs_derivatives: ClassVar[bool] = False
    mean_over_samples: ClassVar[bool] = False  # members are ranked, or compared with each other
    mesh_modes: ClassVar[tuple[str, ...]] = ("population", "data")
    shared_defaults: ClassVar[Running] = RUNNING

    def __init__(
        self,
        perturbation: Perturbation,
        shaping: Shaping,
        *,
        population: int,
        sigma: float,
        mirrored: bool,
        sigma_decay: float = 1.0,
        **running: Unpack[Running],
    ) -> None:
        super().__init__()
        check_positive("sigma", sigma)
        check_positive("sigma_decay", sigma_decay)
        self.perturbation = perturbation
        self.shaping = shaping
        self.members = Member.all(population, mirrored)
        self.sigma = sigma
        self.sigma_decay = sigma_decay
        options = RUNNING | running
        self.evaluator = options["evaluator"]
        check_choice("evaluator", self.evaluator, ("auto", *get_args(EvaluatorName)))
        score = options["objective"]
        if score == "loss" and options["maximize"]:
            raise UserError(
                "maximize: found true, but the objective is the loss. Allowed: true only with your own objective"
            )
        self.objective = None if score == "loss" else Score(score, options["maximize"])
        self.max_memory = options["max_memory"]
        if self.max_memory is not None:
            check_positive("max_memory", self.max_memory)
        # A buffer, so that a resumed run keeps its evaluator: another one rounds differently.
        self.register_buffer("chosen", torch.tensor(-1, dtype=torch.int8))
        self.chosen: Tensor
        self._running: _Chosen | None = None

    @torch.no_grad()
    def gradients(self, net: nn.Module, task: Task, batch: Batch, noise: Noise) -> Scalars:
        """Score every member on this batch, turn the scores into weights, and add the weighted noise to `.grad`.

        Args:
            net: the net.
            task: the task.
            batch: the minibatch.
            noise: the key of the step.

        Returns:
            The task's metrics of the first member, and the mean score as `loss`.
        """
        # Here and not only in `bind`: the user may wrap the net after that.
        refuse_wrapped(net, type(self).__name__, deep=False)
        if self.objective is not None:
            self.objective.check(task)

        def judge(out: Tensor) -> Tensor:
            return task.loss(out, batch) if self.objective is None else self.objective(out, batch.y)

        generation = self.generation(trainable(net), noise)
        with uncompiled():
            chosen = self._choice(net, batch.x, judge, generation)
            if chosen.behaviour.learns:
                learn_state(net, batch.x, noise, chosen.behaviour.still)
            with members(net):
                scores, first = self._all_scores(chosen, batch.x, judge, generation)
        self.learn(generation, scores)
        finite = scores.isfinite()
        mean = torch.where(finite, scores, 0.0).sum() / finite.sum()  # NaN if every member failed
        return metrics_of(task, first, batch, mean)

    def _all_scores(self, chosen: _Chosen, x: Inputs, judge: Judge, generation: Generation) -> tuple[Tensor, Tensor]:
        """The scores [P] of all members on the whole batch, also if several processes share members or samples.

        The outputs [B, D] are those of the first member that this process runs.
        """
        apart, share = own_members(), share_of_batch()
        if apart is not None:
            bounds = apart.bounds(len(self.members), self.members.per_key)
            part = replace(generation, members=self.members.part(*bounds[apart.group.rank]))
            scores, first = self._scores(chosen, x, judge, part)
            return apart.joined(scores, bounds), first
        scores, first = self._scores(chosen, x, judge, generation)
        return (scores if share is None else share.mean(scores)), first

    def _scores(self, chosen: _Chosen, x: Inputs, judge: Judge, generation: Generation) -> tuple[Tensor, Tensor]:
        """The scores [P], and the outputs of the first member; see `Evaluator`."""
        if chosen.behaviour.draws:
            return chosen.evaluator(chosen.net, x, judge, generation)
        with generation.noise.watched(main_input(x).device) as draws:
            found = chosen.evaluator(chosen.net, x, judge, generation)
            if draws():
                # The net did not draw when it was studied, and does now: members had different numbers.
                chosen = self._choice(chosen.net, x, judge, generation, draws=True)
                found = chosen.evaluator(chosen.net, x, judge, generation)
            return found

    def refuse_mesh(self, mode: str, net: nn.Module) -> None:
        """Raise UserError if a score is not a mean over samples, or if members mix the samples of several processes."""
        super().refuse_mesh(mode, net)
        if mode != "data":
            return
        if self.objective is not None and self.objective.score is not OBJECTIVES["accuracy"]:
            raise UserError(
                "mesh: found data, but the objective is a function of the whole batch, which cannot be averaged over "
                "processes. Use train.mesh=population"
            )
        if any(isinstance(module, _BatchNorm) for module in net.modules()):
            raise UserError(
                "mesh: found data, but the net has batch norm, which would need the statistics of each member from all "
                "processes. Use train.mesh=population"
            )

    def forward_passes(self, net: nn.Module, task: Task) -> float:
        """Return P, and one more if layers learn a state such as running statistics, which the first step finds out."""
        return len(self.members) + (self._running is not None and self._running.behaviour.learns)

    def generation(self, parameters: list[nn.Parameter], noise: Noise) -> Generation:
        """Return the members of a step.

        Args:
            parameters: theta.
            noise: the key of the step.
        """
        # The step is -1 for noise that is drawn before training. Then sigma must not be larger than at the start.
        sigma: float | Tensor = self.sigma
        if self.sigma_decay != 1:  # else the step is not asked for
            step = noise.step_number()
            if isinstance(step, Tensor):  # by exp, since a power of a number in float32 would be less exact
                sigma = sigma * (math.log(self.sigma_decay) * step.clamp_min(0)).exp()
            else:
                sigma = sigma * self.sigma_decay ** max(step, 0)
        return Generation(parameters, self.members, self.perturbation, noise, sigma)

    def learn(self, generation: Generation, scores: Tensor) -> None:
        """Add sum_i w_i E_i / (P sigma) to `.grad`.

        Args:
            generation: the members.
            scores: their scores [P], to be minimised.
        """
        # For Gaussian E, (1 / sigma) E[f(theta + sigma E) E] is the gradient of E[f(theta + sigma E)].
        weights = self.shaping(scores) / (len(scores) * generation.sigma)
        add_gradients(generation.parameters, generation.combine(weights))

    def _choice(self, net: nn.Module, x: Inputs, judge: Judge, generation: Generation, draws: bool = False) -> _Chosen:
        """The evaluator of the options, or the fastest one; chosen once for a net and its trainable parameters."""
        # The user may freeze or unfreeze layers between two steps. Then another evaluator may be able, or faster.
        trained = [id(p) for p in generation.parameters]
        if self._running is not None:
            if self._running.net is net and self._running.trained == trained and not draws:
                return self._running
            self.chosen.fill_(-1)
        names = get_args(EvaluatorName)
        asked = self.evaluator if self.chosen < 0 else names[self.chosen]
        apart = own_members()
        behaviour = study(net, x, generation.noise)
        behaviour = replace(behaviour, draws=behaviour.draws or draws)
        # The trials run the net many times. Training must begin as if they had not run.
        state = State(behaviour.stateful)
        try:
            with members(net), generation.noise.fold("choice").global_rng(main_input(x).device):
                if apart is not None and apart.group.rank:  # the first process chooses for all of them
                    asked = apart.group.same(None)
                name, evaluator = choose(asked, net, x, judge, generation, self.max_memory, behaviour)
                if apart is not None and not apart.group.rank:
                    apart.group.same(name)
        finally:
            state.put_back()
        self.chosen.fill_(names.index(name))
        if asked == "auto":
            log.info("%s: members are run by the evaluator '%s'", type(self).__name__, name)
        self._running = _Chosen(net, trained, behaviour, evaluator)
        return self._running

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes for copies and pickles, without the net; a copy studies its net again."""
        return vars(self) | {"_running": None}

    def metadata(self) -> dict[str, str]:
        """Return the name of the chosen evaluator for the results of a run; nothing before the first step."""
        return {} if self.chosen < 0 else {"evaluator": get_args(EvaluatorName)[self.chosen]}
