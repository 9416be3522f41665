"""`python -m bpfree` is `bpfree`."""

from bpfree.cli import main

main()
