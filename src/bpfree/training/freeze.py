"""Parameters that keep their values while the rest of a net is trained; they are chosen by name."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from bpfree.errors import UserError, unknown


def freeze(net: nn.Module, patterns: Sequence[str]) -> None:
    """Exclude parameters from training, for example to train only the last part of a net, or an adapter.

    Args:
        net: the net, changed in place.
        patterns: names of parameters with the shell's wildcards, such as "conv*" or "layer1.*". A pattern that begins
            with "!" includes parameters again: ["*", "!*adapter*"] trains the adapters alone. Later patterns win.

    Raises:
        UserError: a pattern fits no parameter, or no parameter is left to train.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
        >>> freeze(net, ["0.*"])
        >>> [name for name, p in net.named_parameters() if p.requires_grad]
        ['1.weight', '1.bias']
    """
    names = [name for name, _ in net.named_parameters()]
    for pattern in patterns:
        positive = pattern.removeprefix("!")
        # Not fnmatch, which on Windows does not tell upper from lower case.
        matches = {name for name in names if fnmatchcase(name, positive)}
        if not matches:
            raise unknown("parameter in freeze", positive, names)
        for name, p in net.named_parameters():
            if name in matches:
                p.requires_grad_(pattern.startswith("!"))
    if patterns and not any(p.requires_grad for p in net.parameters()):
        raise UserError(
            f"freeze: found {list(patterns)}, which leaves no parameter to train. Add '!NAME' for parameters to train"
        )
