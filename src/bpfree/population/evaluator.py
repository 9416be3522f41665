"""How the members of a population are run."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bpfree.population.perturbation import Keyed, Member
from bpfree.types import Batch, Scalars, Task


class LoopEvaluator:
    """One member after the other, its noise added to the parameters in place and taken off again exactly."""

    def __call__(
        self, net: nn.Module, task: Task, batch: Batch, noise: Keyed, members: Sequence[Member]
    ) -> tuple[Tensor, Scalars]:
        """Losses [P] in float32 or wider, and the task's metrics of the first member.

        The parameters come out bit for bit as they went in, an exception or Ctrl-C included.
        """
        parameters = [p for p in net.parameters() if p.requires_grad]
        base = [p.detach().clone() for p in parameters]
        losses: list[Tensor] = []
        scalars: Scalars = {}
        drawn: tuple[int, list[Tensor]] = (-1, [])
        try:
            for member in members:
                if drawn[0] != member.key:
                    drawn = (member.key, list(noise(member.key, parameters)))
                for p, b, e in zip(parameters, base, drawn[1], strict=True):
                    torch.add(b, e, alpha=member.sign, out=p.data)
                torch.clear_autocast_cache()  # it keeps casts of weights and does not see them change
                out = net(batch.x)
                losses.append(task.loss(out, batch))
                scalars = scalars or task.metrics(out, batch)
        finally:
            for p, b in zip(parameters, base, strict=True):
                p.data.copy_(b)
        return torch.stack(losses), scalars


def accumulate(parameters: Sequence[nn.Parameter], noise: Keyed, members: Sequence[Member], weights: Tensor) -> None:
    """Add sum_i w_i E_i to `.grad`, the noise regenerated member by member; members that share a key are joined."""
    by_key: dict[int, Tensor] = {}
    for member, weight in zip(members, weights.unbind(), strict=True):
        by_key[member.key] = by_key.get(member.key, torch.zeros_like(weight)) + member.sign * weight
    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    for key, weight in by_key.items():
        for p, e in zip(parameters, noise(key, parameters), strict=True):
            assert p.grad is not None
            p.grad.addcmul_(e, weight.to(p.dtype))
