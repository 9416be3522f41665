"""Real calls of torchrun for tests."""

import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
CONFIG, EPOCHS = "digits/mono_forward", 12


def overrides(epochs: int = EPOCHS) -> list[str]:
    """The changes of the config."""
    return ["data.augment.shift=1", "net.hidden=[32]", f"train.epochs={epochs}"]


def training(run: Path, epochs: int = EPOCHS) -> tuple[object, ...]:
    """A small training without pictures into a folder, as a module and its arguments."""
    return ("tests.mesh.undrawn", "train", CONFIG, *overrides(epochs), "--out", run)


def torchrun(*args: object, processes: int = 2, restarts: int = 0) -> list[str]:
    """The command `torchrun --nproc-per-node N -m MODULE ...`."""
    options = [f"--nproc-per-node={processes}", f"--max-restarts={restarts}"]
    return [sys.executable, "-m", "torch.distributed.run", *options, "-m", *map(str, args)]


def started(*args: object, processes: int = 2, restarts: int = 0, **options: object) -> subprocess.Popen[str]:
    """A running call of torchrun in a session of its own; what is printed goes to pipes."""
    return subprocess.Popen(
        torchrun(*args, processes=processes, restarts=restarts),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **{"cwd": ROOT, **options},
    )


def finished(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What torchrun and its processes have printed, when all have ended well."""
    out, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors, errors
    return out, errors


def children(process: subprocess.Popen[str]) -> list[int]:
    """The processes that torchrun runs now, in the order of their start; for Linux."""
    try:
        return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    except OSError:
        return []


def weights(run: Path, name: str = "last.ckpt") -> dict[str, torch.Tensor]:
    """The tensors of net, rule and optimiser in a checkpoint."""
    files = ("weights.safetensors", "rule.safetensors", "optimizer.safetensors")
    return {f"{file}:{key}": tensor for file in files for key, tensor in load_file(run / name / file).items()}
