"""A look inside a net: what is known after each step of NoProp's inference, or at each layer.

- NoProp: the walk from the start to the answer (`DiffusionRule.walk`).
- A local rule whose layers have heads: what each head reads from its layer.
- Any other rule that runs net(x): what a linear probe reads from each layer, as the tracker `segment_accuracy` does. A
  probe is fitted on training samples, so it needs data.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from bpfree.data import Split
from bpfree.diffusion import DiffusionRule
from bpfree.errors import UserError
from bpfree.inputs import Inputs, forward
from bpfree.local.cut import cut
from bpfree.local.rule import LocalRule
from bpfree.pictures.trail import output_at
from bpfree.runs.run import Run
from bpfree.serve.answers import answers_of, of_probabilities
from bpfree.serve.forms import Step
from bpfree.tasks import Classify
from bpfree.trackers.depth import Probe, automatic_taps, features_of

Kind = Literal["walk", "heads", "probes"]
_LONGEST = 64  # values of z; a longer one is not shown
_STEPS = 21  # of a walk that are shown, at most


class Looks:
    """Look inside the net of a run, one sample at a time.

    Args:
        run: a trained run.
        train: training samples for probes; None if the data are not at hand.

    Attributes:
        kind: what can be shown; None if nothing can.
        why: why nothing can be shown; empty if something can.
    """

    def __init__(self, run: Run, train: Split | None) -> None:
        self.run = run
        self.train = train
        self.kind: Kind | None = None
        self.why = ""
        self._probes: dict[str, Probe] | None = None
        rule = run.trainer.rule
        if isinstance(rule, DiffusionRule):
            self.kind = "walk"
        elif not isinstance(run.task, Classify):
            self.why = "Layers are read by their guesses of the class, and this run does not predict classes."
        elif isinstance(rule, LocalRule) and rule.taps and self._has_heads(rule):
            self.kind = "heads"
        elif not isinstance(rule, LocalRule) and not rule.predicts_with_net:
            self.why = f"The rule {type(rule).__name__} does not run the layers of the net one after the other."
        elif run.preprocess.inputs:
            self.why = "Probes read nets of one input, and this net takes several."
        elif train is None:
            self.why = "The layers have no heads. A probe would need the training data, which are not at hand."
        else:
            self.kind = "probes"

    def _has_heads(self, rule: LocalRule) -> bool:
        """Return True if the rule reads class scores from each layer."""
        blank = self.run.preprocess.unlabelled(self.run.preprocess.blank(1))
        found: list[bool] = []
        self._pass(next(self.run.batches(blank).epoch()).x, lambda _, h, scores: found.append(scores is not None))
        return all(found)

    def __call__(self, x: Tensor, *, noise: bool) -> list[Step]:
        """Return the steps for one raw sample.

        Args:
            x: a raw sample [1, ...].
            noise: True to start NoProp's inference from noise, and not as the run does.

        Raises:
            UserError: there is nothing to show, or more than one sample.
        """
        if self.kind is None:
            raise UserError(f"inside: {self.why}")
        if len(x) != 1:
            raise UserError(f"inside: found {len(x)} samples, allowed: one")
        steps = self._walk(x, noise) if self.kind == "walk" else self._layers(x)
        if any(step.answer.probabilities is not None and not _finite(step.answer.probabilities) for step in steps):
            raise UserError("samples: a layer gives NaN or infinite values. Give values in the range of training")
        return steps

    def _walk(self, x: Tensor, noise: bool) -> list[Step]:
        """Return the states of NoProp's inference, each with the answer if inference ended there."""
        run, rule = self.run, self.run.trainer.rule
        assert isinstance(rule, DiffusionRule)
        batch = next(run.batches(run.preprocess.unlabelled(x)).epoch())
        with run.trainer.evaluating():
            states = list(rule.walk(run.net, batch.tensor, stochastic=noise or rule.inference == "stochastic"))
            chosen = sorted({*torch.linspace(0, len(states) - 1, min(_STEPS, len(states))).round().int().tolist()})
            outs = [output_at(rule, states[i]).float().cpu() for i in chosen]
        unit = "step" if rule.timed else "block"
        steps = []
        for number, out in zip(chosen, outs, strict=True):
            z = states[number].z[0].float().cpu().flatten()
            shows_z = len(z) <= _LONGEST and bool(z.isfinite().all())
            name = "start" if number == 0 else f"after {unit} {number}"
            steps.append(Step(name=name, answer=answers_of(run, out, x)[0], z=z.tolist() if shows_z else None))
        return steps

    def _layers(self, x: Tensor) -> list[Step]:
        """Return what the head or the probe of each layer reads, and the run's own answer."""
        run = self.run
        read = self._probabilities() if self.kind == "probes" else None
        steps: list[Step] = []

        def look(name: str, h: Tensor, scores: Tensor | None) -> None:
            if read is not None:
                shares = read[name](features_of(h)).float().clamp_min(0)[0]
                steps.append(Step(name=name, answer=of_probabilities(run, shares / shares.sum().clamp_min(1e-9))))
            elif scores is not None:
                shares = run.task.probabilities(scores.float())[0].cpu()
                steps.append(Step(name=name, answer=of_probabilities(run, shares)))

        self._pass(next(run.batches(run.preprocess.unlabelled(x)).epoch()).tensor, look)
        return [*steps, Step(name="answer", answer=answers_of(run, run.scores(x), x)[0])]

    def _probabilities(self) -> dict[str, Probe]:
        """Return a probe for each tap. They are fitted when they are first asked for."""
        if self._probes is None:
            assert self.train is not None
            features: dict[str, list[Tensor]] = {}
            for batch in self.run.batches(self.train).epoch():
                self._pass(batch.x, lambda name, h, _: features.setdefault(name, []).append(features_of(h)))
            target = torch.nn.functional.one_hot(self.train.y, self.run.preprocess.classes).double()
            self._probes = {name: Probe(torch.cat(parts), target) for name, parts in features.items()}
        return self._probes

    def _pass(self, x: Inputs, look: Callable[[str, Tensor, Tensor | None], object]) -> None:
        """Run the net on inputs, and call `look` with the name, the output and the scores of each tapped layer."""
        run, rule = self.run, self.run.trainer.rule
        taps = rule.taps if isinstance(rule, LocalRule) else self._taps()

        def visit(index: int, h: Tensor) -> Tensor | None:
            scores = rule.scores(index, h) if isinstance(rule, LocalRule) else None
            look(taps[index], h, scores)
            return rule.pass_on(index, h) if isinstance(rule, LocalRule) else None

        with run.trainer.evaluating(), cut(run.net, taps, visit):
            forward(run.net, x)

    def _taps(self) -> tuple[str, ...]:
        """Return the layers that a local rule would choose."""
        blank = self.run.preprocess.unlabelled(self.run.preprocess.blank(2))
        return automatic_taps(self.run.net, next(self.run.batches(blank).epoch()))


def _finite(values: list[float]) -> bool:
    return bool(torch.tensor(values).isfinite().all())
