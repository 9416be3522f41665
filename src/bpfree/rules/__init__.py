"""Every learning rule, one file per algorithm family. `RULES` is the table that the config and the tests go by."""

from bpfree.rule import Rule
from bpfree.rules.backprop import Backprop
from bpfree.rules.dfa import DFA
from bpfree.rules.mono_forward import MonoForward
from bpfree.rules.noprop_dt import NoPropDT
from bpfree.rules.recombine import Recombine

RULES: dict[str, type[Rule]] = {
    "backprop": Backprop,
    "dfa": DFA,
    "mono_forward": MonoForward,
    "noprop_dt": NoPropDT,
    "recombine": Recombine,
}

__all__ = ["DFA", "RULES", "Backprop", "MonoForward", "NoPropDT", "Recombine"]
