"""bfloat16 and TF32 where the machine multiplies them in hardware, and never in silence where it does not."""

import json
import logging
from types import SimpleNamespace
from typing import get_args

import pytest
import torch

import bpfree
from bpfree import Batch, Trainer, UserError
from bpfree.api import resume
from bpfree.nets import NETS
from bpfree.runs.config import TrainConfig
from bpfree.runs.config_file import load_config, shipped
from bpfree.training import precision, processor, rehearsal
from tests.helpers import TASK, net_for, same

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


@pytest.mark.parametrize("asked", ["float32", "float32_torch", "tf32", "bfloat16"])
def test_what_is_asked_for_is_taken_without_a_word(asked, hardware, caplog, monkeypatch):
    hardware(True)
    monkeypatch.setattr(precision, "has_tf32", lambda device: True)
    assert precision.resolve(asked, CPU) == asked
    assert not caplog.messages


def test_tf32_is_float32_on_a_processor_and_says_so(caplog):
    batch = Batch(torch.randn(8, 1, 8, 8), torch.arange(8))
    learned = []
    for asked in ("float32", "tf32"):
        trainer = Trainer(net_for("dfa", dtype=torch.float32), "dfa", TASK, compute=asked)
        assert trainer.precision == "float32"
        trainer.step(batch)
        learned.append(trainer.net.state_dict())
    assert same(*learned)
    (line,) = caplog.messages
    assert line.startswith("precision: float32, since this processor does not have TF32")


def test_tf32_is_put_back():
    cuda = torch.backends.cuda.matmul, torch.backends.cudnn
    name = "fp32_precision" if hasattr(cuda[0], "fp32_precision") else "allow_tf32"
    switches = [cuda[0], *([cuda[1].conv, cuda[1].rnn] if name == "fp32_precision" else cuda[1:])]
    before = [getattr(switch, name) for switch in switches]

    def step():
        assert {getattr(switch, name) for switch in switches} <= {"tf32", True}
        assert torch.backends.cudnn.allow_tf32, "the old name agrees"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), precision.arithmetic("tf32", torch.device("cuda")):
        step()
    assert [getattr(switch, name) for switch in switches] == before


def test_float16_is_refused_with_the_reason():
    with pytest.raises(UserError, match="found 'float16'.* no loss to scale. Use bfloat16"):
        Trainer(net_for("dfa"), "dfa", TASK, compute="float16")


def test_channels_last_on_cuda_where_its_units_read_maps_so(monkeypatch):
    cuda = SimpleNamespace(type="cuda")
    maps = SimpleNamespace(dim=lambda: 4, dtype=torch.float32, device=cuda)
    monkeypatch.setattr(rehearsal, "tensors_of", lambda x: (maps,))
    gaining = {p for p in get_args(precision.Precision) if rehearsal.gains(torch.nn.Conv2d(1, 1, 1), None, p)}
    assert gaining == {"bfloat16", "tf32"}


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
    assert processor.has_tf32(torch.device("cuda")) is there
    assert not processor.has_tf32(CPU)


def test_no_shipped_config_asks_for_bfloat16_everywhere():
    assert TrainConfig().precision == "float32"
    found = {name: load_config(name).train.precision for name in shipped()}
    assert set(found.values()) == {"auto", "float32"}


def test_a_net_with_attention_leaves_products_to_torch():
    """With the other library its kernel takes five times as long. A resumed run computes as it began."""
    trainer = Trainer(NETS["vit"]((1, 8, 8), 10, width=16, depth=1, heads=2), "backprop", TASK, "sgd")
    on_cpu = trainer.device.type == "cpu"
    assert trainer.precision == ("float32_torch" if on_cpu else "float32")
    trainer.compute_as("float32", None)
    assert trainer.precision == "float32"
    assert Trainer(NETS["mlp"]((1, 8, 8), 10), "backprop", TASK, "sgd").precision == "float32"
