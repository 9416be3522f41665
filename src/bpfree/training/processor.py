"""Abilities of the processor or GPU of this machine that decide how we compute."""

import os
import platform

import torch

# oneDNN reads these variables when it starts. They limit the instructions that it uses.
_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
_WITHOUT_AVX512 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2")
_WITHOUT_BFLOAT16 = (*_WITHOUT_AVX512, "AVX512_CORE", "AVX512_CORE_VNNI")


def is_x86() -> bool:
    """Return True if the processor is of the x86-64 family."""
    return platform.machine().lower() in ("x86_64", "amd64")


def has_avx512() -> bool:
    """Return True if torch and oneDNN compute with AVX-512 on this processor; environment variables may forbid it."""
    return "AVX512" in torch.backends.cpu.get_cpu_capability() and _limit() not in _WITHOUT_AVX512


def multiplies_bfloat16(device: torch.device) -> bool:
    """Return True if the device multiplies bfloat16 matrices in hardware.

    Where it does not, libraries convert each number back and forth, and a step takes many times as long as in float32.

    Args:
        device: a CPU or a GPU. Other devices count as if they could not.
    """
    if device.type == "cuda":
        return torch.version.hip is not None or _is_ampere(device)
    if device.type != "cpu":
        return False
    return is_x86() and _limit() not in _WITHOUT_BFLOAT16 and _has_instructions("avx512_bf16", "amx_bf16")


def has_tf32(device: torch.device) -> bool:
    """Return True if the device multiplies float32 matrices in TF32, with operands of 10 bits of fraction.

    Args:
        device: any device.
    """
    return device.type == "cuda" and _is_ampere(device)


def _is_ampere(device: torch.device) -> bool:
    """Return True for NVIDIA's GPUs from Ampere on, which was the first with bfloat16 and TF32."""
    # On ROCm torch reports AMD's numbers here, which mean something else.
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


def _limit() -> str:
    return next((os.environ[name].upper() for name in _LIMITS if os.environ.get(name)), "")


def _has_instructions(*names: str) -> bool:
    """Return True if the processor has one of these sets of instructions."""
    if hasattr(torch.cpu, "get_capabilities"):  # torch 2.11 and newer
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name) for name in names)
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            flags = next((line.split() for line in file if line.startswith("flags")), [])
    except OSError:
        return False
    return any(name in flags for name in names)
