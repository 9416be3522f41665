"""A warning for users who call the net of a run although the rule predicts in another way.

Reading the net must not warn: weights are read from it, and it is saved and trained further. So the net gets a hook
that warns at the first call from outside of bpfree, and then removes itself.
"""

import sys
import warnings
from types import FrameType
from typing import Any
from weakref import WeakSet

from torch import nn

from bpfree.rule import Rule

_WATCHED: WeakSet[nn.Module] = WeakSet()  # nets that have had the hook, so that each of them warns once


class _Hook:
    """A forward pre-hook that warns once.

    Args:
        rule: the name of the rule that trained the net.
    """

    def __init__(self, rule: str) -> None:
        self.rule = rule

    def __call__(self, net: nn.Module, args: tuple[Any, ...]) -> None:
        """Warn, unless a function of bpfree calls the net."""
        frame: FrameType | None = sys._getframe(1)
        level = 2
        outside: int | None = None
        while frame is not None:
            package = frame.f_globals.get("__name__", "").partition(".")[0]
            if package == "bpfree":
                return
            if outside is None and package != "torch":
                outside = level
            frame, level = frame.f_back, level + 1
        forget(net)
        warnings.warn(
            f"run.net: its output is not what the run predicts, since {self.rule} predicts in another way. Use "
            "run.predict or run.predict_proba, or run.as_module() for one nn.Module",
            UserWarning,
            stacklevel=outside or 2,
        )


def watched(net: nn.Module, rule: Rule) -> nn.Module:
    """Return the net, which warns at its first call if the rule does not predict by net(x).

    Args:
        net: the net of a run. It is not changed beyond a hook, which removes itself.
        rule: the rule that trained it.
    """
    if rule.predicts_with_net:
        forget(net)  # another rule may have trained this net before
    elif net not in _WATCHED:
        _WATCHED.add(net)
        net.register_forward_pre_hook(_Hook(type(rule).__name__))
    return net


def forget(net: nn.Module) -> nn.Module:
    """Remove the warning from a net, such as a copy, and return the net.

    Args:
        net: any net.
    """
    hooks = net._forward_pre_hooks
    for key in [key for key, hook in hooks.items() if isinstance(hook, _Hook)]:
        del hooks[key]
    return net
