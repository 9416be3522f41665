"""Work with finished and many runs: report, compare, certify, tune, ledger, and TensorBoard."""
