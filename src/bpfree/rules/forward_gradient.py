"""Forward gradients: exact slopes along random directions, in forward mode.

Baydin, Pearlmutter, Syme, Wood, Torr 2022, "Gradients without Backpropagation", https://arxiv.org/abs/2202.08587

    g = (grad L . v) v,   v ~ N(0, I),   E[g] = grad L

The directional derivative grad L . v comes exactly from one forward pass in forward mode, which keeps no activations.
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from bpfree.errors import check_choice, check_positive
from bpfree.grad import add_gradients, trainable
from bpfree.inputs import Inputs, scores_of, tensors_of
from bpfree.local.forward_mode import dual_level, forward_derivatives
from bpfree.mesh import own_members
from bpfree.nets.acceptance import refuse_wrapped
from bpfree.noise import Noise
from bpfree.population import PERTURBATIONS, Generation, Member, Population
from bpfree.population.behaviour import State
from bpfree.rule import Locality, Rule
from bpfree.tasks.base import metrics_of
from bpfree.types import Batch, Scalars, Task


class ForwardGradient(Rule):
    """Directional derivatives, each times its direction.

    Args:
        directions: how many are drawn for a step and averaged; each takes one pass.
        perturbation: of the directions: "gaussian", or "rademacher" (+1 or -1), whose estimates vary less.
    """

    takes_soft_labels: ClassVar[bool] = True
    needs_derivatives: ClassVar[bool] = True
    mesh_modes: ClassVar[tuple[str, ...]] = ("data", "population")

    def __init__(self, *, directions: int = 1, perturbation: Literal["gaussian", "rademacher"] = "gaussian") -> None:
        super().__init__()
        check_positive("directions", directions)
        check_choice("perturbation", perturbation, PERTURBATIONS)
        self.members = Population(Member(i, 1) for i in range(directions))
        self.perturbation = PERTURBATIONS[perturbation]()

    def forward_passes(self, net: nn.Module, task: Task) -> float:
        """Return the number of directions."""
        return len(self.members)

    def locality(self) -> Locality:
        """Through the whole net, but forwards: there is no way back, and nothing is kept for it."""
        return Locality(transports="none", memory="flat")

    @torch.no_grad()
    def gradients(self, net: nn.Module, task: Task, batch: Batch, noise: Noise) -> Scalars:
        """Run one pass for each direction, and add each slope times its direction."""
        refuse_wrapped(net, type(self).__name__, deep=False)
        names = [name for name, p in net.named_parameters() if p.requires_grad]
        generation = Generation(trainable(net), self.members, self.perturbation, noise)
        slopes: list[Tensor] = []
        scalars: Scalars = {}
        start = State(list(net.modules()) if len(self.members) > 1 else [])
        apart = own_members()
        bounds = [(0, len(self.members))] if apart is None else apart.bounds(len(self.members))
        first, end = bounds[0 if apart is None else apart.group.rank]
        for member in self.members[first:end]:
            start.put_back()  # so that state such as running statistics is learned once, from the same start
            directions = [sample.dense()[0] for sample in generation.draw(member.key)]
            with dual_level(), noise.fold("dropout").global_rng(batch.device):
                moved = {
                    name: forward_ad.make_dual(p.detach(), v)  # type: ignore[no-untyped-call]
                    for name, p, v in zip(names, generation.parameters, directions, strict=True)
                }
                with forward_derivatives():
                    out = scores_of(torch.func.functional_call(net, moved, *_arguments(batch.x)))
                loss, slope = forward_ad.unpack_dual(task.loss(out, batch))  # type: ignore[no-untyped-call]
                slopes.append(loss.new_zeros(()) if slope is None else slope)
                if not scalars:
                    primal = forward_ad.unpack_dual(out).primal  # type: ignore[no-untyped-call]
                    scalars = metrics_of(task, primal, batch, loss)
        all_slopes = torch.stack(slopes) if apart is None else apart.joined(torch.stack(slopes), bounds)
        add_gradients(generation.parameters, generation.combine(all_slopes / len(all_slopes)))
        return scalars


def _arguments(x: Inputs) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """The arguments of a net by place and by name."""
    return ((), x) if isinstance(x, dict) else (tensors_of(x), {})
