"""A setting of OpenMP: threads that wait for each other sleep soon, so that other programs may have the core.

After each operation torch's threads wait for the slowest. GNU's OpenMP lets them spin for some milliseconds. If another
program runs on one of the cores, the thread that lost its core cannot go on while the others spin. On two cores, one of
them in use, a short training with NoProp took 29 s with two threads, and 7 s with this setting; with one thread, alone
on the machine, it takes 4 s. On an idle machine the setting took 0.97 to 1.05 of the time. Results do not depend on it.
"""

import os

_SPINS = "GOMP_SPINCOUNT"
_FEW = "3000"  # some microseconds; with 1000, small nets took 1.2 to 1.3 of the time on an idle machine
_DECIDED = (_SPINS, "OMP_WAIT_POLICY")


def sleep_soon() -> None:
    """Let waiting threads of this process sleep soon, unless the environment says otherwise.

    OpenMP reads the setting when torch is imported, so call this before. Only bpfree's commands do, because a library
    must not change its user's settings.
    """
    if not any(name in os.environ for name in _DECIDED):
        os.environ[_SPINS] = _FEW
