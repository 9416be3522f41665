"""Every learning rule, one file per algorithm family. `RULES` is the table that the config and the tests go by."""

from bpfree.rule import Rule
from bpfree.rules.backprop import Backprop
from bpfree.rules.cwcomp import CwComp
from bpfree.rules.deep_supervision import DeepSupervision
from bpfree.rules.dfa import DFA, DRTP, Shallow
from bpfree.rules.es import ES, SPSA, Eggroll
from bpfree.rules.fa import BRSF, FA, FRSF, USF
from bpfree.rules.forward_forward import ForwardForward
from bpfree.rules.forward_gradient import ForwardGradient
from bpfree.rules.local import Local
from bpfree.rules.mono_forward import MonoForward
from bpfree.rules.natural import PGPE, SNES
from bpfree.rules.noprop_ct import NoPropCT
from bpfree.rules.noprop_dt import NoPropDT, NoPropLinear
from bpfree.rules.noprop_fm import NoPropFM
from bpfree.rules.noprop_hybrid import NoPropHybrid
from bpfree.rules.pepita import Pepita
from bpfree.rules.predsim import Pred, PredSim, Sim
from bpfree.rules.recombine import Recombine
from bpfree.rules.softhebb import SoftHebb

RULES: dict[str, type[Rule]] = {
    "backprop": Backprop,
    "deep_supervision": DeepSupervision,
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
    "softhebb": SoftHebb,
    "noprop_dt": NoPropDT,
    "noprop_ct": NoPropCT,
    "noprop_fm": NoPropFM,
    "noprop_hybrid": NoPropHybrid,
    "noprop_linear": NoPropLinear,
    "recombine": Recombine,
    "es": ES,
    "eggroll": Eggroll,
    "spsa": SPSA,
    "snes": SNES,
    "pgpe": PGPE,
    "forward_gradient": ForwardGradient,
}

DeepSupervision.table = RULES  # it trains by another rule's losses, and its file cannot import this table

__all__ = [
    "BRSF",
    "DFA",
    "DRTP",
    "ES",
    "FA",
    "FRSF",
    "PGPE",
    "RULES",
    "SNES",
    "SPSA",
    "USF",
    "Backprop",
    "CwComp",
    "DeepSupervision",
    "Eggroll",
    "ForwardForward",
    "ForwardGradient",
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
    "SoftHebb",
]
