"""Parameters that are to stay as they are, by name."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from bpfree.errors import UserError, unknown


def freeze(net: nn.Module, patterns: Sequence[str]) -> None:
    """Take parameters out of training, to train a last part or an adapter alone.

    Args:
        net: the net, changed in place.
        patterns: of names of parameters, with the shell's wildcards, such as "conv*" or "layer1.*"; one that begins
            with "!" is of names that are to be trained after all: ["*", "!*adapter*"]. Later patterns win.

    Raises:
        UserError: a pattern fits no parameter, or nothing is left to train.
    """
    names = [name for name, _ in net.named_parameters()]
    for pattern in patterns:
        wanted = pattern.removeprefix("!")
        fitting = {name for name in names if fnmatchcase(name, wanted)}
        if not fitting:
            raise unknown("parameter in freeze", wanted, names)
        for name, p in net.named_parameters():
            if name in fitting:
                p.requires_grad_(pattern.startswith("!"))
    if patterns and not any(p.requires_grad for p in net.parameters()):
        raise UserError(f"freeze: found {list(patterns)}, which leaves nothing to train. Add '!NAME' of what is to be")
