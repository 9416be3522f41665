"""bfloat16 where the machine multiplies it in hardware, and never in silence where it does not."""

import json
import logging

import pytest
import torch

import bpfree
from bpfree import Trainer
from bpfree.api import resume
from bpfree.runs.config import TrainConfig
from bpfree.runs.config_file import load_config, shipped
from bpfree.training import precision, processor
from tests.helpers import TASK, net_for

CPU = torch.device("cpu")


@pytest.fixture
def hardware(monkeypatch):
    """Set whether the machine multiplies bfloat16 in hardware."""
    return lambda there: monkeypatch.setattr(precision, "multiplies_bfloat16", lambda device: there)


@pytest.mark.parametrize(("there", "chosen"), [(True, "bfloat16"), (False, "float32")])
def test_auto_takes_what_the_machine_multiplies(there, chosen, hardware, caplog):
    hardware(there)
    with caplog.at_level(logging.INFO, "bpfree"):
        trainer = Trainer(net_for("dfa"), "dfa", TASK, compute="auto")
    assert trainer.precision == chosen
    (line,) = caplog.messages
    assert line.startswith(f"precision: {chosen}, since this processor")


def test_emulated_bfloat16_gives_a_warning(hardware, caplog):
    hardware(False)
    assert precision.resolve("bfloat16", CPU) == "bfloat16"
    (line,) = caplog.messages
    assert "does not multiply it in hardware" in line
    assert "11 times" in line


@pytest.mark.parametrize("asked", ["float32", "float32_torch", "bfloat16"])
def test_what_is_asked_for_is_taken_without_a_word(asked, hardware, caplog):
    hardware(True)
    assert precision.resolve(asked, CPU) == asked
    assert not caplog.messages


def test_a_run_goes_on_in_the_precision_in_which_it_began(tmp_path, hardware, caplog):
    hardware(True)
    begun = bpfree.fit("mlp", "digits", "dfa", epochs=2, precision="auto", out=tmp_path / "run")
    assert begun.result["precision"] == "bfloat16"
    (tmp_path / "run" / "result.json").unlink()
    state = tmp_path / "run" / "last.ckpt" / "state.json"
    assert json.loads(state.read_text())["precision"] == "bfloat16"
    hardware(False)
    again = resume(tmp_path / "run")
    assert again.config.train.precision == "auto"
    assert again.result["precision"] == again.trainer.precision == "bfloat16"
    assert any("does not multiply it in hardware" in line for line in caplog.messages)
    assert bpfree.load(tmp_path / "run").trainer.precision == "bfloat16"


@pytest.mark.parametrize(
    ("flags", "limit", "there"),
    [
        ({"avx512_bf16": True}, "", True),
        ({"amx_bf16": True}, "", True),
        ({"avx512_f": True, "avx2": True}, "", False),
        ({"avx512_bf16": True}, "AVX2", False),
        ({"avx512_bf16": True}, "AVX512_CORE", False),
        ({"avx512_bf16": True}, "AVX512_CORE_BF16", True),
    ],
)
def test_the_processors_that_multiply_it(flags, limit, there, monkeypatch):
    monkeypatch.setattr(processor, "is_x86", lambda: True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags, raising=False)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert processor.multiplies_bfloat16(CPU) is there
    assert not processor.multiplies_bfloat16(torch.device("mps"))


@pytest.mark.parametrize(("capability", "there"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_the_gpus_that_multiply_it(capability, there, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    assert processor.multiplies_bfloat16(torch.device("cuda")) is there


def test_no_shipped_config_asks_for_bfloat16_everywhere():
    assert TrainConfig().precision == "float32"
    found = {name: load_config(name).train.precision for name in shipped()}
    assert set(found.values()) == {"auto", "float32"}
