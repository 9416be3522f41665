"""Comparisons of learning rules on the same net, data and epochs, always with backprop: `bpfree compare`.

plan       groups and rows: which rules are trained, and with which config
compare    train the runs, and write compare.json and report.html
answers    which test samples each run has right
measure    numbers from the run folders: means, and differences from the baselines
page       the HTML report
charts     the figures of the report
"""

from bpfree.lab.compare.compare import Comparison, compare

__all__ = ["Comparison", "compare"]
