"""Comparisons of learning rules on the same net, data and epochs, always with backprop: `bpfree compare`.

plan       groups and rows: which rules are trained, and with which config
entries    what a row and a group are
recipes    the config of a rule on the data, net and epochs that the user chose
controls   baselines and control experiments for each net
own        the net and the data of a user, as Python objects
compare    train the runs, and write compare.json and report.html
answers    which test samples each run has right
measure    numbers from the run folders: means, and differences from the baselines
page       the HTML report
charts     all figures of the report; drawn by `forest`, `curves` and `scatter`
families   rows by net and by family of rules, with their colours
export     files for a paper: CSV, LaTeX, PDF and SVG
"""

from bpfree.lab.compare.compare import Comparison, compare

__all__ = ["Comparison", "compare"]
