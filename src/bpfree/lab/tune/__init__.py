"""`bpfree tune`: the values that a config leaves open are searched by Optuna, by any number of processes."""
