"""The HTML report of one or several runs, and the parts that pages are built of.

report     `bpfree.report`: read the runs, draw their pictures, write the page
sections   the sections of a report of one run
records    a run folder as plain values, also if it is damaged
charts     matplotlib figures for a page
html, svg  the parts of a page: tables, pictures, code
format     numbers as text
"""
