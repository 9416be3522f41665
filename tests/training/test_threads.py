"""Commands let waiting threads sleep soon; the user's own setting comes first, and libraries change nothing."""

import os
import subprocess
import sys

import pytest

SHOW = "import os, bpfree; print(os.environ.get('GOMP_SPINCOUNT'), os.environ.get('OMP_WAIT_POLICY'))"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "3000 None"),
        ({"GOMP_SPINCOUNT": "7"}, "7 None"),
        ({"OMP_WAIT_POLICY": "active"}, "None active"),
    ],
)
def test_the_environment_decides_first(given, expected, monkeypatch):
    from bpfree.training.threads import sleep_soon

    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    sleep_soon()
    assert f"{os.environ.get('GOMP_SPINCOUNT')} {os.environ.get('OMP_WAIT_POLICY')}" == expected


def test_a_program_that_imports_bpfree_keeps_its_setting(monkeypatch):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    done = subprocess.run([sys.executable, "-c", SHOW], capture_output=True, text=True, check=True)
    assert done.stdout == "None None\n"
