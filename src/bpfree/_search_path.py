"""`python -m bpfree` finds libraries before files of the current folder.

Python puts the current folder first on its path then, so a `sklearn.py` there would run in place of the library. The
folder is taken off, before anything else is imported; `bpfree.spec` puts it last once a config names code of the user's
own. A program that imports bpfree keeps its path.
"""

import sys

_AS_A_PROGRAM = sys.argv[:1] == ["-m"] and any(word in ("bpfree", "-mbpfree") for word in sys.orig_argv[1:])
if _AS_A_PROGRAM and not sys.flags.safe_path:
    del sys.path[0]
