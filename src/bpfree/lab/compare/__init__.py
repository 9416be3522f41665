"""Comparisons of learning rules on the same net, data and epochs, always with backprop: `bpfree compare`."""

from bpfree.lab.compare.compare import Comparison, compare

__all__ = ["Comparison", "compare"]
