"""The HTML report of one or several runs, and the parts that pages are built of."""
