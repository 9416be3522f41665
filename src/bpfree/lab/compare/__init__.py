"""The same net, data and epochs for each rule, with backprop beside them: `bpfree compare`."""

from bpfree.lab.compare.compare import Comparison, compare

__all__ = ["Comparison", "compare"]
