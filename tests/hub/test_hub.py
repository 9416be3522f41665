"""Runs on the Hugging Face Hub: saved, pushed to a server on loopback, and loaded, to the bit and without any code."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard, constants
from torch import nn

import bpfree
from bpfree import UserError, hub
from bpfree.hub.card import card
from tests.export.trainings import samples, trained
from tests.hub.server import COMMIT, Hub

NAME = "me/mine"


@pytest.fixture(scope="module")
def run():
    return bpfree.fit("mlp", "digits", "mono_forward", epochs=1, fraction=0.1)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A Hub at which huggingface_hub looks, with an empty cache."""
    made = Hub()
    threading.Thread(target=made.serve_forever, daemon=True).start()
    for name, value in (
        ("ENDPOINT", made.url),
        ("HUGGINGFACE_CO_URL_TEMPLATE", constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, made.url)),
        ("HF_HUB_CACHE", str(tmp_path / "cache")),
        ("HF_TOKEN_PATH", str(tmp_path / "no-token")),
        ("HF_HUB_DISABLE_PROGRESS_BARS", True),
        ("HF_HUB_OFFLINE", False),
    ):
        monkeypatch.setattr(constants, name, value)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield made
    made.shutdown()
    made.server_close()


def test_a_folder_gives_back_the_run_to_the_bit(run, tmp_path):
    folder = hub.save(run, tmp_path / "shared")
    again = hub.load(folder)
    x = run.test.x[:40]
    assert torch.equal(again.predict_proba(x), run.predict_proba(x))
    assert again.result["test"] == run.result["test"]
    kinds = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert not kinds & {".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".py"}
    with pytest.raises(UserError, match="holds another run"):
        hub.save(run, folder)


def test_what_is_pushed_comes_back_to_the_bit(run, server, undrawn):
    url = hub.push(run, NAME, licence="mit", private=True, token="secret")
    assert url == f"{server.url}/{NAME}/commit/{COMMIT}"
    assert server.private == {NAME}
    files = server.repositories[NAME]
    assert {"README.md", "config.yaml", "result.json", "last.ckpt/weights.safetensors"} <= files.keys()
    assert not [name for name in files if "tfevents" in name or name.startswith(".")]
    again = hub.load(NAME)
    x = run.test.x[:40]
    assert torch.equal(again.predict_proba(x), run.predict_proba(x))


def test_other_files_of_a_repository_are_not_downloaded(run, server, undrawn):
    hub.push(run, NAME, token="secret")
    server.repositories[NAME] |= {"evil.py": b"raise SystemExit", "pytorch_model.bin": b"a pickle", "a/b.pkl": b"x"}
    folder = hub.load(NAME).folder
    assert sorted(p.name for p in folder.rglob("*") if p.suffix in (".py", ".bin", ".pkl")) == []
    assert not [path for _, path in server.asked if path.endswith((".py", ".bin", ".pkl"))]


def test_a_config_that_names_code_is_refused(run, server, undrawn, tmp_path, monkeypatch):
    hub.push(run, NAME, token="secret")
    (tmp_path / "stranger.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\nclass Net: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = yaml.safe_load(server.repositories[NAME]["config.yaml"])
    config["net"] = {"name": "stranger:Net"}
    server.repositories[NAME]["config.yaml"] = yaml.safe_dump(config).encode()
    with pytest.raises(UserError, match="stranger:Net"):
        hub.load(NAME)
    assert not (tmp_path / "executed").exists()


def test_a_net_from_python_is_given_again(server, undrawn):
    x, y = samples("classify")
    make = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 3))  # noqa: E731
    run = bpfree.fit(make(), (x, y), "backprop", epochs=1)
    hub.push(run, NAME, token="secret")
    assert f"hub.load('{NAME}', net=net)" in server.repositories[NAME]["README.md"].decode()
    with pytest.raises(UserError, match="its net was an object from Python"):
        hub.load(NAME)
    assert torch.equal(hub.load(NAME, net=make()).predict_proba(x), run.predict_proba(x))


def test_without_a_network_the_cache_serves(run, server, undrawn, tmp_path):
    """In a process of its own, since huggingface_hub reads the variable when it is imported."""
    hub.push(run, NAME, token="secret")
    hub.load(NAME)
    server.shutdown()
    code = f"""
from bpfree import hub, UserError
print(hub.load({NAME!r}).folder.name)
try:
    hub.load("me/other")
except UserError as error:
    print("refused", error)
"""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_ENDPOINT": server.url}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.startswith(f"{COMMIT}\nrefused source: found me/other, but "), done.stderr


def test_what_the_hub_refuses_is_one_error(run, server, undrawn):
    with pytest.raises(UserError, match=r"repo_id: found me/mine, .*401.*Log in by `hf auth login`"):
        hub.push(run, NAME, token="wrong")
    with pytest.raises(UserError, match=r"source: found me/nowhere, .*Give a run folder"):
        hub.load("me/nowhere")
    for wrong in ("a b", "x/y/z", "-x"):
        with pytest.raises(UserError, match="repo_id: found"):
            hub.push(run, wrong, token="secret")
        with pytest.raises(UserError, match="source: found"):
            hub.load(wrong)
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match="repo_id: found me/mine, "):
        hub.push(run, NAME, token="secret")


def test_a_missing_package_is_named_with_its_cure(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for act in (lambda: hub.push(run, NAME), lambda: hub.load(NAME)):
        with pytest.raises(UserError, match=r"needs the package huggingface_hub, .*pip install 'bpfree\[hub\]'"):
            act()


def test_the_card_states_what_a_reader_asks(run, tmp_path, undrawn):
    text = (hub.save(run, tmp_path / "mine", licence="mit") / "README.md").read_text()
    head = ModelCard(text).data
    assert head.license == "mit"
    assert head.library_name == "bpfree"
    assert head.pipeline_tag == "image-classification"
    assert "mono_forward" in head.tags
    shown = {each.metric_type: each.metric_value for each in head.eval_results}
    assert shown["accuracy"] == pytest.approx(run.result["test"]["accuracy"], abs=1e-4)
    for line in (
        "| data | digits |",
        "| licence of the data | CC BY 4.0 (https://archive.ics.uci.edu",
        f"| test accuracy | {run.result['test']['accuracy']:.4f} |",
        "| an objective is differentiated through | one part of the net |",
        "| a part waits for later parts | no |",
        "| parameters of the net | ",
        "| licence of the weights | mit |",
        f"| time | {run.result['wall_seconds']:.1f} s on cpu in float32 |",
        f"run = hub.load('{tmp_path / 'mine'}')",
    ):
        assert line in text, line


def test_a_card_without_metrics_and_with_strange_names(tmp_path, undrawn):
    x, y = samples("classify")
    names = np.array(["a|b", "line\nbreak", "<b>"])
    run = bpfree.fit("mlp", (x, names[y]), "backprop", epochs=1)
    text = (hub.save(run, tmp_path / "mine") / "README.md").read_text()
    assert "| classes | <b>, a\\|b, line break |" in text
    assert "The run has no test metrics." in text
    assert "| licence of the weights | not stated |" in text
    assert ModelCard(text).data.license is None
    assert "| a part waits for later parts | yes |" in text


@pytest.mark.parametrize("rule", ["backprop", "fa", "brsf", "es", "noprop_dt"])
def test_cards_name_rule_and_locality(rule):
    text = card(trained(rule), "mine", None)
    said = "backprop, the baseline of bpfree" if rule == "backprop" else f"the learning rule `{rule}` of bpfree"
    assert said in text
    assert ModelCard(text).data.tags[-1] == rule
    reads = {"none": "nothing", "signs": "their signs", "initial": "their first values", "weights": "their values"}
    transports = trained(rule).trainer.rule.locality().transports
    assert f"| the way back reads of the forward weights | {reads[transports]} |" in text
