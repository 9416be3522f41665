"""Every learning rule, one file per algorithm family. `RULES` is the table that the config and the tests go by."""

from bpfree.rule import Rule
from bpfree.rules.backprop import Backprop
from bpfree.rules.cwcomp import CwComp
from bpfree.rules.dfa import DFA, DRTP, Shallow
from bpfree.rules.fa import BRSF, FA, FRSF, USF
from bpfree.rules.forward_forward import ForwardForward
from bpfree.rules.local import Local
from bpfree.rules.mono_forward import MonoForward
from bpfree.rules.noprop_ct import NoPropCT
from bpfree.rules.noprop_dt import NoPropDT, NoPropLinear
from bpfree.rules.noprop_fm import NoPropFM
from bpfree.rules.noprop_hybrid import NoPropHybrid
from bpfree.rules.pepita import Pepita
from bpfree.rules.predsim import Pred, PredSim, Sim
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
    "local": Local,
    "mono_forward": MonoForward,
    "pred": Pred,
    "sim": Sim,
    "predsim": PredSim,
    "forward_forward": ForwardForward,
    "cwcomp": CwComp,
    "pepita": Pepita,
    "noprop_dt": NoPropDT,
    "noprop_ct": NoPropCT,
    "noprop_fm": NoPropFM,
    "noprop_hybrid": NoPropHybrid,
    "noprop_linear": NoPropLinear,
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
    "CwComp",
    "ForwardForward",
    "Local",
    "MonoForward",
    "NoPropCT",
    "NoPropDT",
    "NoPropFM",
    "NoPropHybrid",
    "NoPropLinear",
    "Pepita",
    "Pred",
    "PredSim",
    "Recombine",
    "Shallow",
    "Sim",
]
