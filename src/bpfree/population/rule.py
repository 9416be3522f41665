"""The rules that never differentiate a net: how their options, members, scores and steps hang together."""

import logging
from dataclasses import replace
from typing import Any, ClassVar, Literal, NamedTuple, TypedDict, Unpack, get_args

import torch
from torch import Tensor, nn

from bpfree.errors import UserError, check_choice, check_positive
from bpfree.grad import add_gradients, trainable
from bpfree.inputs import Inputs, main_input
from bpfree.nets.acceptance import refuse_wrapped
from bpfree.noise import Noise, drawn_since, generator_states
from bpfree.population.behaviour import Behaviour, State, study
from bpfree.population.choice import EvaluatorName, choose
from bpfree.population.evaluators import Evaluator, Judge
from bpfree.population.generation import Generation, Member
from bpfree.population.perturbation import Perturbation
from bpfree.population.score import Score, ScoreFunction
from bpfree.population.shaping import Shaping
from bpfree.population.statistics import learn_state, members, uncompiled
from bpfree.rule import Rule
from bpfree.types import Batch, Scalars, Task

log = logging.getLogger(__name__)


class Running(TypedDict, total=False):
    """What every BlackBoxRule takes beside its own options."""

    evaluator: EvaluatorName | Literal["auto"]
    objective: str | ScoreFunction
    maximize: bool | None
    max_memory: float | None


RUNNING: Running = {"evaluator": "auto", "objective": "loss", "maximize": None, "max_memory": None}


class _Chosen(NamedTuple):
    """How the members of a net are run, as long as the same parameters are trained."""

    net: nn.Module
    trained: list[int]
    behaviour: Behaviour
    evaluator: Evaluator


class BlackBoxRule(Rule):
    """A rule that tries perturbed copies of the parameters and never differentiates the net.

    Member i has the parameters theta + sigma E_i; `.grad` becomes sum_i w_i E_i / (P sigma), with the weights w made
    from the members' scores. A member is a key and a sign, its noise regenerated when needed: memory is that of
    inference and a few times the parameters, whatever the size of the population.

    Members run with dropout off, and with batch norm by their own minibatch, as in training. What layers learn by
    themselves in training mode (running statistics, the vectors of spectral norm) they learn once a step, in a pass of
    the unperturbed net; members leave it alone. Random numbers that `forward` draws are the same for all members of a
    step. A net whose output depends on other state is refused.

    Args:
        perturbation: how members differ, E.
        shaping: scores [P] -> weights [P].
        population: P, the number of members.
        sigma: standard deviation of a perturbed parameter.
        sigma_decay: what sigma is multiplied by after each step.
        mirrored: members come in pairs +E, -E; P must be even.
        evaluator: how members are run: one by one ("loop"; "in_place" without a copy of the parameters), side by side
            ("vmap"), or side by side with shared products where noise has a low rank ("lowrank"); "auto", the default,
            times those that can run the net before the first step.
        objective: what members are judged by: "loss", the task's and the default, "accuracy", "macro_f1", or a function
            (outputs [B, D], targets) -> score. It need not be smooth. NaN makes a member the worst.
        maximize: the direction of an objective that is a function.
        max_memory: MiB that members run side by side may take, with their parameters where these are written out
            ("vmap"), or that the samples of one member may take ("loop", "in_place": the minibatch goes through in
            slices, unless the net mixes its samples); default: what fits in a processor's cache.
    """

    takes_soft_labels: ClassVar[bool] = True
    needs_derivatives: ClassVar[bool] = False
    mean_over_samples: ClassVar[bool] = False  # members are ranked, or compared with each other

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
        self.asked = options["evaluator"]
        check_choice("evaluator", self.asked, ("auto", *get_args(EvaluatorName)))
        score = options["objective"]
        if score == "loss" and options["maximize"]:
            raise UserError(
                "maximize: found true, but the objective is the loss. Allowed: with an objective of your own"
            )
        self.objective = None if score == "loss" else Score(score, options["maximize"])
        self.max_memory = options["max_memory"]
        if self.max_memory is not None:
            check_positive("max_memory", self.max_memory)
        self.register_buffer("chosen", torch.tensor(-1, dtype=torch.int8))  # so that a resumed run goes on alike
        self.chosen: Tensor
        self._running: _Chosen | None = None

    @torch.no_grad()
    def gradients(self, net: nn.Module, task: Task, batch: Batch, noise: Noise) -> Scalars:
        """ScoreFunction every member on this batch, shape the scores into weights, and add the weighted noise."""
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
                before = [] if chosen.behaviour.draws else generator_states(batch.device)
                scores, first = chosen.evaluator(net, batch.x, judge, generation)
                if before and drawn_since(before, batch.device):  # it did not when it was studied
                    chosen = self._choice(net, batch.x, judge, generation, draws=True)
                    scores, first = chosen.evaluator(net, batch.x, judge, generation)
        self.learn(generation, scores)
        finite = scores.isfinite()
        mean = torch.where(finite, scores, 0.0).sum() / finite.sum()  # NaN if every member failed
        return task.metrics(first, batch) | {"loss": mean}

    def generation(self, parameters: list[nn.Parameter], noise: Noise) -> Generation:
        """The members of the step that the noise is keyed by."""
        sigma = self.sigma * self.sigma_decay ** max(noise.step, 0)
        return Generation(parameters, self.members, self.perturbation, noise, sigma)

    def learn(self, generation: Generation, scores: Tensor) -> None:
        """Add to `.grad` what the scores [P] say."""
        assert isinstance(generation.scale, float)
        weights = self.shaping(scores) / (len(scores) * generation.scale)
        add_gradients(generation.parameters, generation.combine(weights))

    def _choice(self, net: nn.Module, x: Inputs, judge: Judge, generation: Generation, draws: bool = False) -> _Chosen:
        """The evaluator that was asked for, or the fastest; chosen once for a net and what is trained of it."""
        trained = [id(p) for p in generation.parameters]
        if self._running is not None:
            if self._running.net is net and self._running.trained == trained and not draws:
                return self._running
            self.chosen.fill_(-1)
        names = get_args(EvaluatorName)
        asked = self.asked if self.chosen < 0 else names[self.chosen]
        behaviour = study(net, x, generation.noise)
        behaviour = replace(behaviour, draws=behaviour.draws or draws)
        state = State(behaviour.stateful)
        try:
            with members(net), generation.noise.fold("choice").global_rng(main_input(x).device):
                name, evaluator = choose(asked, net, x, judge, generation, self.max_memory, behaviour)
        finally:
            state.put_back()
        self.chosen.fill_(names.index(name))
        if asked == "auto":
            log.info("%s: members are run by the evaluator '%s'", type(self).__name__, name)
        self._running = _Chosen(net, trained, behaviour, evaluator)
        return self._running

    def __getstate__(self) -> dict[str, Any]:
        """The rule without the net that it trained, which a copy looks at anew; for copies and pickles."""
        return vars(self) | {"_running": None}

    def metadata(self) -> dict[str, str]:
        """The evaluator."""
        return {} if self.chosen < 0 else {"evaluator": get_args(EvaluatorName)[self.chosen]}
