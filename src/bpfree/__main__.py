"""Run the command line with `python -m bpfree`."""

from bpfree.cli import main

main()
