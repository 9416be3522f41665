"""Every learning rule, one file per algorithm family. `RULES` is the table that the config and the tests go by."""

from typing import Literal, overload

from bpfree.rule import Rule
from bpfree.rules.auglocal import AugLocal
from bpfree.rules.backprop import Backprop
from bpfree.rules.cwcomp import CwComp, DeeperForward
from bpfree.rules.deep_supervision import DeepSupervision
from bpfree.rules.dfa import DFA, DRTP, Shallow
from bpfree.rules.dgl import DGL
from bpfree.rules.diffusion_blocks import DiffusionBlocks
from bpfree.rules.es import ES, SPSA, Eggroll
from bpfree.rules.fa import BRSF, FA, FRSF, USF
from bpfree.rules.forward_forward import ForwardForward
from bpfree.rules.forward_gradient import ForwardGradient
from bpfree.rules.grape import GrAPE
from bpfree.rules.greedy import Greedy
from bpfree.rules.hff import HFF
from bpfree.rules.infopro import InfoPro
from bpfree.rules.local import Local
from bpfree.rules.lopt import LoPT
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
from bpfree.rules.solo import Solo

_TABLE: dict[str, type[Rule]] = {
    "backprop": Backprop,
    "deep_supervision": DeepSupervision,
    "fa": FA,
    "usf": USF,
    "brsf": BRSF,
    "frsf": FRSF,
    "dfa": DFA,
    "grape": GrAPE,
    "drtp": DRTP,
    "shallow": Shallow,
    "local": Local,
    "mono_forward": MonoForward,
    "pred": Pred,
    "sim": Sim,
    "predsim": PredSim,
    "greedy": Greedy,
    "dgl": DGL,
    "infopro": InfoPro,
    "auglocal": AugLocal,
    "solo": Solo,
    "lopt": LoPT,
    "forward_forward": ForwardForward,
    "hff": HFF,
    "cwcomp": CwComp,
    "deeper_forward": DeeperForward,
    "pepita": Pepita,
    "softhebb": SoftHebb,
    "noprop_dt": NoPropDT,
    "noprop_ct": NoPropCT,
    "noprop_fm": NoPropFM,
    "noprop_hybrid": NoPropHybrid,
    "noprop_linear": NoPropLinear,
    "diffusion_blocks": DiffusionBlocks,
    "recombine": Recombine,
    "es": ES,
    "eggroll": Eggroll,
    "spsa": SPSA,
    "snes": SNES,
    "pgpe": PGPE,
    "forward_gradient": ForwardGradient,
}


class RuleTable(dict[str, type[Rule]]):
    """A table of rules. Type checkers know each entry, and refuse `RULES["dfa"](feedbak="xavier")`."""

    @overload
    def __getitem__(self, name: Literal["backprop"], /) -> type[Backprop]: ...
    @overload
    def __getitem__(self, name: Literal["deep_supervision"], /) -> type[DeepSupervision]: ...
    @overload
    def __getitem__(self, name: Literal["fa"], /) -> type[FA]: ...
    @overload
    def __getitem__(self, name: Literal["usf"], /) -> type[USF]: ...
    @overload
    def __getitem__(self, name: Literal["brsf"], /) -> type[BRSF]: ...
    @overload
    def __getitem__(self, name: Literal["frsf"], /) -> type[FRSF]: ...
    @overload
    def __getitem__(self, name: Literal["dfa"], /) -> type[DFA]: ...
    @overload
    def __getitem__(self, name: Literal["grape"], /) -> type[GrAPE]: ...
    @overload
    def __getitem__(self, name: Literal["drtp"], /) -> type[DRTP]: ...
    @overload
    def __getitem__(self, name: Literal["shallow"], /) -> type[Shallow]: ...
    @overload
    def __getitem__(self, name: Literal["local"], /) -> type[Local]: ...
    @overload
    def __getitem__(self, name: Literal["mono_forward"], /) -> type[MonoForward]: ...
    @overload
    def __getitem__(self, name: Literal["pred"], /) -> type[Pred]: ...
    @overload
    def __getitem__(self, name: Literal["sim"], /) -> type[Sim]: ...
    @overload
    def __getitem__(self, name: Literal["predsim"], /) -> type[PredSim]: ...
    @overload
    def __getitem__(self, name: Literal["greedy"], /) -> type[Greedy]: ...
    @overload
    def __getitem__(self, name: Literal["dgl"], /) -> type[DGL]: ...
    @overload
    def __getitem__(self, name: Literal["infopro"], /) -> type[InfoPro]: ...
    @overload
    def __getitem__(self, name: Literal["auglocal"], /) -> type[AugLocal]: ...
    @overload
    def __getitem__(self, name: Literal["solo"], /) -> type[Solo]: ...
    @overload
    def __getitem__(self, name: Literal["lopt"], /) -> type[LoPT]: ...
    @overload
    def __getitem__(self, name: Literal["forward_forward"], /) -> type[ForwardForward]: ...
    @overload
    def __getitem__(self, name: Literal["hff"], /) -> type[HFF]: ...
    @overload
    def __getitem__(self, name: Literal["cwcomp"], /) -> type[CwComp]: ...
    @overload
    def __getitem__(self, name: Literal["deeper_forward"], /) -> type[DeeperForward]: ...
    @overload
    def __getitem__(self, name: Literal["pepita"], /) -> type[Pepita]: ...
    @overload
    def __getitem__(self, name: Literal["softhebb"], /) -> type[SoftHebb]: ...
    @overload
    def __getitem__(self, name: Literal["noprop_dt"], /) -> type[NoPropDT]: ...
    @overload
    def __getitem__(self, name: Literal["noprop_ct"], /) -> type[NoPropCT]: ...
    @overload
    def __getitem__(self, name: Literal["noprop_fm"], /) -> type[NoPropFM]: ...
    @overload
    def __getitem__(self, name: Literal["noprop_hybrid"], /) -> type[NoPropHybrid]: ...
    @overload
    def __getitem__(self, name: Literal["noprop_linear"], /) -> type[NoPropLinear]: ...
    @overload
    def __getitem__(self, name: Literal["diffusion_blocks"], /) -> type[DiffusionBlocks]: ...
    @overload
    def __getitem__(self, name: Literal["recombine"], /) -> type[Recombine]: ...
    @overload
    def __getitem__(self, name: Literal["es"], /) -> type[ES]: ...
    @overload
    def __getitem__(self, name: Literal["eggroll"], /) -> type[Eggroll]: ...
    @overload
    def __getitem__(self, name: Literal["spsa"], /) -> type[SPSA]: ...
    @overload
    def __getitem__(self, name: Literal["snes"], /) -> type[SNES]: ...
    @overload
    def __getitem__(self, name: Literal["pgpe"], /) -> type[PGPE]: ...
    @overload
    def __getitem__(self, name: Literal["forward_gradient"], /) -> type[ForwardGradient]: ...
    @overload
    def __getitem__(self, name: str, /) -> type[Rule]: ...
    def __getitem__(self, name: str, /) -> type[Rule]:
        return super().__getitem__(name)


RULES = RuleTable(_TABLE)
"""Every rule by its name. `bpfree list rules` shows them."""
DeepSupervision.table = RULES  # it trains by another rule's losses, and its file cannot import this table

__all__ = [
    "BRSF",
    "DFA",
    "DGL",
    "DRTP",
    "ES",
    "FA",
    "FRSF",
    "HFF",
    "PGPE",
    "RULES",
    "SNES",
    "SPSA",
    "USF",
    "AugLocal",
    "Backprop",
    "CwComp",
    "DeepSupervision",
    "DeeperForward",
    "DiffusionBlocks",
    "Eggroll",
    "ForwardForward",
    "ForwardGradient",
    "GrAPE",
    "Greedy",
    "InfoPro",
    "LoPT",
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
    "RuleTable",
    "Shallow",
    "Sim",
    "SoftHebb",
    "Solo",
]
