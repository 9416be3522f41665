"""Published figures beside ours: `bpfree ledger`.

entries    benchmarks/ledger.yaml: what is claimed where, and which config of ours is to reach it
results    benchmarks/results/<name>.json: what the runs of an entry came to
status   how an entry stands: reached, not reached, or nothing to compare
page       docs/ledger.md, from these two
update     run what has no result yet, and write the page anew
"""

from bpfree.lab.ledger.update import Update, update

__all__ = ["Update", "update"]
