"""The part of bpfree that shows a user what happens while a command or a call runs.

loading     a word at a terminal while large packages are imported
first       of several processes, the one that shows something
live        bars at a terminal or in a notebook, and lines elsewhere
"""
