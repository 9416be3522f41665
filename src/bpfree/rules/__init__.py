"""Every learning rule, one file per algorithm family. `RULES` is the table that the config and the tests go by."""

from bpfree.rule import Rule
from bpfree.rules.backprop import Backprop
from bpfree.rules.dfa import DFA, DRTP, Shallow
from bpfree.rules.fa import BRSF, FA, FRSF, USF
from bpfree.rules.mono_forward import MonoForward
from bpfree.rules.noprop_dt import NoPropDT
from bpfree.rules.recombine import Recombine

RULES: dict[str, type[Rule]] = {
    "backprop": Backprop,
    "fa": FA,
    "usf": USF,
    "brsf": BRSF,
    "frsf": FRSF,
    "dfa": DFA,
    "drtp": DRTP,
    "shallow": Shallow,
    "mono_forward": MonoForward,
    "noprop_dt": NoPropDT,
    "recombine": Recombine,
}

__all__ = [
    "BRSF",
    "DFA",
    "DRTP",
    "FA",
    "FRSF",
    "RULES",
    "USF",
    "Backprop",
    "MonoForward",
    "NoPropDT",
    "Recombine",
    "Shallow",
]
