"""A comparison of published results with the results of bpfree's own configs: `bpfree ledger`.

entries    benchmarks/ledger.yaml: published values with their sources, and the config that should reach each of them
results    benchmarks/results/<name>.json: the results of an entry's runs
status     the status of an entry: reached, not reached, or nothing to compare
page       docs/ledger.md, made from entries and results
update     train the runs that have no result yet, and write the page again
"""

from bpfree.lab.ledger.update import Update, update

__all__ = ["Update", "update"]
