"""The HTML report of one or several runs, and the parts that pages are built of.

report     `bpfree.report`: read the runs, draw their pictures, write the page
sections   the sections of a report of one run
records    a run folder as plain values, also if it is damaged
charts     matplotlib figures for a page
html       the parts of a page: pictures, code, facts; it also has those of `tables`
tables     tables that sort, with groups of rows
markup     the templates of a page
svg        a matplotlib figure in the colours of a page
format     numbers as text
"""
