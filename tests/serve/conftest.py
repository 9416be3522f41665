"""Small trained runs, and the services for them."""

import pytest
from starlette.testclient import TestClient

import bpfree
from bpfree.serve.app import application
from bpfree.serve.found import find_runs
from bpfree.serve.limits import Limits
from bpfree.serve.served import load_runs
from tests.helpers import without_pictures

DENOISER = {"name": "denoiser", "backbone": "mlp", "trunk": "own", "blocks": 3, "width": 32}


@pytest.fixture(scope="session")
def digit_runs(tmp_path_factory):
    """The folder of three runs on digits: backprop, a local rule with heads, and NoProp."""
    root = tmp_path_factory.mktemp("digits")
    with without_pictures():
        for rule, net in (("backprop", "mlp"), ("mono_forward", "mlp"), ("noprop_dt", DENOISER)):
            optimizer = {"name": "adam", "lr": 4e-3}
            bpfree.fit(net, "digits", rule, epochs=8, optimizer=optimizer, out=root / rule, verbose=False)
    return root


@pytest.fixture(scope="session")
def other_runs(tmp_path_factory):
    """The folder of three runs on other data: a table, numbers to predict, and images to rebuild."""
    root = tmp_path_factory.mktemp("others")
    rows = [f"{n},{'red' if n % 2 else 'blue'},{'warm' if n % 2 else 'cold'}" for n in range(60)]
    (root / "table.csv").write_text("\n".join(["size,colour,feel", *rows]))
    table = {"name": "table", "path": str(root / "table.csv"), "label": "feel"}
    small = {"name": "mlp", "hidden": [8]}
    with without_pictures():
        bpfree.fit(small, table, "backprop", epochs=60, out=root / "table", verbose=False)
        bpfree.fit(small, "diabetes", "dfa", task="regress", epochs=2, out=root / "diabetes", verbose=False)
        bpfree.fit(small, "digits", "dfa", task="reconstruct", epochs=1, out=root / "rebuild", verbose=False)
    return root


@pytest.fixture(scope="session")
def served(digit_runs, other_runs):
    return load_runs(find_runs([digit_runs, other_runs]), None, trust=False)


@pytest.fixture
def client(served):
    """A client of the service, which raises the errors of the server."""
    with TestClient(application(served, Limits()), base_url="http://localhost") as client:
        yield client


@pytest.fixture(scope="session")
def runs(served):
    """The loaded runs by their names."""
    return {each.id: each.run for each in served}
