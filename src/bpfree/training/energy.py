"""The energy that a training takes, where the machine has a counter that this process may read.

- **NVML** counts the energy of a whole NVIDIA GPU since its driver was loaded, in millijoules, on GPUs of the Volta
  generation and newer. It needs the package nvidia-ml-py: `pip install "bpfree[energy]"`. The processor is not in it.
- **RAPL** counts the energy of whole processor packages in microjoules, on Intel and AMD processors under Linux. Most
  systems allow only root to read it, since its values can betray secrets of other processes (CVE-2020-8694). Main
  memory and GPUs are not in it.

Both count a whole device, so the work of other processes and the power of the idle device are in the result.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch

Source = Literal["nvml", "rapl"]
POWERCAP = Path("/sys/class/powercap")
"""The folder in which Linux shows the counters of RAPL."""
_PAUSE = 30.0  # seconds between two looks; a package at 500 W reaches the end of a counter of 65 kJ after 130 seconds


class Counter(NamedTuple):
    """A counter of energy that only rises, and that may begin again at 0.

    Attributes:
        read: returns the present value; raises OSError or ValueError if it cannot.
        joules: what a count of 1 stands for.
        end: the value after which the counter begins again at 0; None if it does not.
    """

    read: Callable[[], int]
    joules: float
    end: int | None = None


class EnergyMeter:
    """Adds up what counters of energy count between `start` and `stop`.

    Args:
        source: where the counters come from.
        counters: their sum is the energy.
    """

    def __init__(self, source: Source, counters: Sequence[Counter]) -> None:
        self.source: Source = source
        self.counters = counters
        self._joules: float | None = None
        self._values: list[int] = []
        self._looked = 0.0

    def start(self) -> None:
        """Begin a measurement at 0 joules."""
        self._looked = time.monotonic()
        self._joules = 0.0
        try:
            self._values = [counter.read() for counter in self.counters]
        except (OSError, ValueError):
            self._joules = None

    def look(self) -> None:
        """Read the counters if the last reading is a while ago, so that none of them can begin again twice between."""
        if time.monotonic() - self._looked > _PAUSE:
            self._read()

    def stop(self) -> float | None:
        """Return the joules since `start`; None if a counter could not be read in the meantime."""
        self._read()
        return self._joules

    def _read(self) -> None:
        self._looked = time.monotonic()
        if self._joules is None:
            return
        try:
            values = [counter.read() for counter in self.counters]
        except (OSError, ValueError):
            self._joules = None
            return
        for counter, before, now in zip(self.counters, self._values, values, strict=True):
            counted = now - before
            if counted < 0 and counter.end is not None:
                counted += counter.end
            self._joules += counted * counter.joules
        self._values = values


def open_meter(device: torch.device) -> EnergyMeter | None:
    """Return a meter of the energy of a device: NVML for a GPU, RAPL for the processor.

    Args:
        device: where the net is.

    Returns:
        None if the machine does not have a counter, or if this process may not read it.
    """
    if device.type == "cuda":
        return _nvml(device)
    return _rapl(POWERCAP) if device.type == "cpu" else None


def _nvml(device: torch.device) -> EnergyMeter | None:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        # By its UUID: torch counts the GPUs in CUDA_VISIBLE_DEVICES, and NVML those in the machine.
        gpu = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu)
    except pynvml.NVMLError:  # no driver, an older GPU, or a part of a GPU (MIG)
        return None

    def millijoules() -> int:
        try:
            return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu))
        except pynvml.NVMLError as error:
            raise OSError(str(error)) from error

    return EnergyMeter("nvml", [Counter(millijoules, 1e-3)])


def _rapl(folder: Path) -> EnergyMeter | None:
    counters: list[Counter] = []
    try:
        # `intel-rapl:0` is a package, also of AMD; `intel-rapl:0:0` is a part of it, and `intel-rapl-mmio:0` counts the
        # same package a second time. The zone `psys` is the whole computer, with the packages in it.
        for zone in sorted(folder.glob("intel-rapl:*")):
            if zone.name.count(":") == 1 and (zone / "name").read_text().startswith("package"):
                end = int((zone / "max_energy_range_uj").read_text())
                counters.append(Counter(_reader(zone / "energy_uj"), 1e-6, end))
        for counter in counters:
            counter.read()
    except (OSError, ValueError):
        return None  # the sum of only some packages would be too small
    return EnergyMeter("rapl", counters) if counters else None


def _reader(path: Path) -> Callable[[], int]:
    return lambda: int(path.read_text())
