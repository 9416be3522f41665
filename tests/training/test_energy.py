"""Energy: counters of a fake powercap folder and of a fake NVML, which rise by known amounts."""

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

import bpfree
from bpfree.api import resume
from bpfree.trackers import Tracker
from bpfree.training import energy
from bpfree.training.energy import open_meter
from bpfree.training.progress import Progress
from tests.runs.test_run import power_cut

CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)
RANGE = 65_532_610_987  # microjoules, of real processors


class Powercap:
    """A folder like /sys/class/powercap with two packages, their parts, and zones that must not be counted."""

    def __init__(self, folder):
        self.folder = folder
        self.zone("intel-rapl:0", "package-0", 1_000_000)
        self.zone("intel-rapl:0:0", "core", 500_000)
        self.zone("intel-rapl:0:1", "dram", 100_000)
        self.zone("intel-rapl:1", "package-1", 7)
        self.zone("intel-rapl:2", "psys", 9_000_000)
        self.zone("intel-rapl-mmio:0", "package-0", 1_000_000)
        (folder / "dtpm").mkdir()

    def zone(self, zone, name, microjoules):
        (self.folder / zone).mkdir()
        (self.folder / zone / "name").write_text(f"{name}\n")
        (self.folder / zone / "max_energy_range_uj").write_text(f"{RANGE}\n")
        self.put(zone, microjoules)

    def put(self, zone, microjoules):
        (self.folder / zone / "energy_uj").write_text(f"{microjoules}\n")

    def rise(self, joules):
        """Each zone takes so many joules; a counter that reaches its end begins again."""
        for file in self.folder.glob("*/energy_uj"):
            file.write_text(f"{(int(file.read_text()) + round(1e6 * joules)) % RANGE}\n")


@pytest.fixture
def powercap(tmp_path, monkeypatch):
    folder = tmp_path / "powercap"
    folder.mkdir()
    monkeypatch.setattr(energy, "POWERCAP", folder)
    return Powercap(folder)


@pytest.fixture
def nvml(monkeypatch):
    """A GPU that has taken 5 kJ, known to NVML by its UUID."""
    made = ModuleType("pynvml")

    class NVMLError(Exception):
        pass

    def handle(uuid):
        if uuid != "GPU-1234":
            raise NVMLError("Not Found")
        return SimpleNamespace(uuid=uuid)

    made.NVMLError, made.millijoules = NVMLError, 5_000_000
    made.nvmlInit = lambda: None
    made.nvmlDeviceGetHandleByUUID = handle
    made.nvmlDeviceGetTotalEnergyConsumption = lambda gpu: made.millijoules
    monkeypatch.setitem(sys.modules, "pynvml", made)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1234"))
    return made


class Burn(Tracker):
    """Takes one joule in each package at every step."""

    def __init__(self, powercap):
        self.powercap = powercap

    def on_step(self, trainer, batch):
        self.powercap.rise(1)


def test_rapl_adds_up_the_packages(powercap):
    meter = open_meter(CPU)
    meter.start()
    powercap.rise(2.5)
    assert meter.source == "rapl"
    assert meter.stop() == pytest.approx(2 * 2.5)
    meter.start()
    assert meter.stop() == 0, "a second measurement begins at 0"


def test_a_counter_may_begin_again(powercap, monkeypatch):
    """Once between two readings; a long measurement reads in between, so that it is once."""
    now = [0.0]
    monkeypatch.setattr(energy.time, "monotonic", lambda: now[0])
    powercap.put("intel-rapl:0", RANGE - 1_000_000)
    meter = open_meter(CPU)
    meter.start()
    powercap.rise(3)
    assert meter.stop() == pytest.approx(2 * 3)
    meter.start()
    for _ in range(10):
        powercap.rise(0.6 * RANGE / 1e6)
        now[0] += 31
        meter.look()
    assert meter.stop() == pytest.approx(2 * 6 * RANGE / 1e6)


def test_a_look_that_comes_early_reads_nothing(powercap, monkeypatch):
    monkeypatch.setattr(energy.time, "monotonic", lambda: 0.0)
    meter = open_meter(CPU)
    meter.start()
    monkeypatch.setattr(meter, "_read", lambda: pytest.fail("a step must not pay for a file"))
    meter.look()


def test_what_cannot_be_measured_is_none(powercap, tmp_path, monkeypatch, capfd):
    for breakage in ("denied", "text", "gone"):
        folder = tmp_path / breakage
        folder.mkdir()
        Powercap(folder)
        file = folder / "intel-rapl:1" / "energy_uj"
        file.unlink()
        if breakage == "denied":  # root may read everything, and a folder cannot be read by anybody
            file.mkdir()
        elif breakage == "text":
            file.write_text("many")
        monkeypatch.setattr(energy, "POWERCAP", folder)
        assert open_meter(CPU) is None, "the sum of one of two packages is not the energy"
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "not there")
    assert open_meter(CPU) is None
    assert open_meter(torch.device("mps")) is None
    assert capfd.readouterr() == ("", "")


def test_a_permission_that_is_missing_means_none(powercap, monkeypatch):
    def denied(self, *args, **named):
        if self.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return real(self, *args, **named)

    real = energy.Path.read_text
    meter = open_meter(CPU)
    meter.start()
    monkeypatch.setattr(energy.Path, "read_text", denied)
    assert meter.stop() is None, "the right to read may go while a training runs"
    assert open_meter(CPU) is None


def test_nvml_counts_the_gpu_of_the_net(nvml):
    meter = open_meter(GPU)
    meter.start()
    nvml.millijoules += 1234
    assert meter.source == "nvml"
    assert meter.stop() == pytest.approx(1.234)


def test_no_nvml_no_energy(nvml, monkeypatch, capfd):
    def refused(*_):
        raise nvml.NVMLError("Not Supported")

    meter = open_meter(GPU)
    meter.start()
    monkeypatch.setattr(nvml, "nvmlDeviceGetTotalEnergyConsumption", refused)
    assert meter.stop() is None
    assert open_meter(GPU) is None, "a GPU before Volta"
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="another"))
    assert open_meter(GPU) is None
    monkeypatch.setitem(sys.modules, "pynvml", None)  # importing it raises ImportError
    assert open_meter(GPU) is None
    assert capfd.readouterr() == ("", "")


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def test_a_run_says_what_it_took(powercap, tmp_path, undrawn):
    run = bpfree.fit(net(), "digits", "backprop", epochs=2, trackers=[Burn(powercap)], out=tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["energy_joules"] == pytest.approx(2 * run.metrics[-1]["step"])
    assert result["energy_source"] == "rapl"
    assert bpfree.load(tmp_path / "run", net=net()).result["energy_joules"] == result["energy_joules"]


def test_a_run_on_a_machine_without_counters(powercap, monkeypatch, tmp_path):
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "not there")
    result = bpfree.fit(net(), "digits", "backprop", epochs=1).result
    assert result["energy_joules"] is None
    assert result["energy_source"] is None


@pytest.mark.parametrize("again", ["same machine", "another machine"])
def test_a_resumed_run_adds_up(again, powercap, tmp_path, undrawn, at_once, monkeypatch):
    real = bpfree.Trainer.step

    def step(self, batch):
        powercap.rise(1)
        return real(self, batch)

    monkeypatch.setattr(bpfree.Trainer, "step", step)
    with power_cut(monkeypatch, 7, by_ctrl_c=True), pytest.raises(KeyboardInterrupt):
        bpfree.fit("mlp", "digits", "backprop", epochs=1, out=tmp_path / "torn")
    state = json.loads((tmp_path / "torn" / "last.ckpt" / "state.json").read_text())["progress"]
    assert state["energy_joules"] == pytest.approx(2 * 7)
    if again == "another machine":
        monkeypatch.setattr(energy, "POWERCAP", tmp_path / "not there")
    run = resume(tmp_path / "torn")
    joules = run.result["energy_joules"]
    assert joules == (pytest.approx(2 * run.progress.step) if again == "same machine" else None)


def test_energy_of_two_kinds_is_not_added(powercap, nvml):
    progress = Progress()
    for device in (CPU, CPU, GPU):
        with progress.timed(open_meter(device)):
            powercap.rise(1)
        if device == CPU:
            assert progress.energy_source == "rapl"
    assert progress.energy_joules is progress.energy_source is None
    with progress.timed(open_meter(CPU)):
        powercap.rise(1)
    assert progress.energy_joules is None, "a part is missing for ever"
