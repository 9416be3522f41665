"""The cost of a training step on a GPU: all tables for one device in one run, compared with plain torch.

    python benchmarks/device.py [--parts mlp_small vgg_128 ...] [--out FILE] [--device cuda] [--quick]

First the gradients of every rule are compared with float64 on the CPU (`gradients.py`). Then come the tables, each in
one process and in alternating groups (`clock.py`): wall milliseconds of a step with the device idle before and after,
the median of the groups, and the ratio to plain torch: eager, and captured as one CUDA graph. TF32 is allowed. Nets of
convolutions lie channels last. Then an epoch of a training is compared with its steps. At the end a profile says how
many kernels a step launches, and how long they are busy.
A part stops when its time is up and says what is missing; the whole takes less than seven minutes on an H100.
`--quick` makes everything tiny, to try the script on a CPU.
"""

import argparse
import json
import platform
import subprocess
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from device_loop import loop
from device_parts import PARTS, STEP_RULES, TARGETS, Part, Scene
from device_profile import profile

import bpfree
from bpfree.rules import RULES

ALL_PARTS = {**PARTS, "loop": Part(25, loop), "profile": Part(30, profile)}


def printed(title: str, rows: dict[str, Any]) -> None:
    """Print a table as plain text."""
    print(f"\n## {title}")
    columns = list(dict.fromkeys(key for row in rows.values() for key in row if key not in ("failed", "rule", "net")))
    if columns:
        print(f"{'':32}" + "".join(f"{column:>{_width(column)}}" for column in columns))
    for name, row in rows.items():
        if "failed" in row:
            print(f"{name:32}{row['failed']}")
            continue
        print(f"{name:32}" + "".join(f"{_cell(row.get(column)):>{_width(column)}}" for column in columns), flush=True)


def aim(title: str, rows: dict[str, Any]) -> None:
    """Write our aims into the rows."""
    for words, targets in TARGETS.items():
        for name, ratio in targets.items():
            if title.startswith(words) and name in rows:
                rows[name]["target"] = ratio


def _width(column: str) -> int:
    return max(len(column), 8) + 2


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def round_float32(allowed: bool) -> None:
    """Allow or forbid that products and convolutions in float32 round their operands to TF32."""
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    for backend in backends:
        if hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # torch 2.9 and newer
            backend.fp32_precision = "tf32" if allowed else "ieee"
        else:
            backend.allow_tf32 = allowed


def described(device: torch.device, commit: str | None) -> dict[str, str]:
    """Return what a reader must know about the run."""
    if commit is None:
        done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
        commit = done.stdout.strip() or "unknown"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu"
    date = time.strftime("%Y-%m-%d %H:%M")
    return {"device": name, "torch": torch.__version__, "bpfree": bpfree.__version__, "commit": commit, "date": date}


def main() -> None:
    """Measure all parts, print the tables and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=ALL_PARTS, default=list(ALL_PARTS))
    parser.add_argument("--rules", nargs="+", choices=RULES, default=STEP_RULES, help="rules in the tables of steps")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="tiny nets and few calls, to try the script")
    parser.add_argument("--groups", type=int, default=5, help="number of groups of calls for each subject")
    parser.add_argument("--seconds", type=float, default=1.0, help="factor for the time limit of each part")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="options for every trainer")
    parser.add_argument("--commit", help="the commit, if git is not available")
    parser.add_argument("--out", type=Path, help="a JSON file, written after each part")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    device = torch.device(options.device)
    pairs = dict(pair.split("=", 1) for pair in options.set)
    scene = Scene(device, options.quick, 2 if options.quick else options.groups, options.rules, pairs)
    about = described(device, options.commit)
    print(", ".join(f"{key} {value}" for key, value in about.items()), flush=True)
    result: dict[str, Any] = {"about": about, "parts": {}}
    for name in options.parts:
        start = time.perf_counter()
        round_float32(allowed=name != "correct")
        tables = ALL_PARTS[name].run(scene, ALL_PARTS[name].seconds * options.seconds)
        for title, rows in tables.items():
            aim(f"{name}, {title}", rows)
            printed(f"{name}, {title}", rows)
        result["parts"][name] = {"seconds": time.perf_counter() - start, "tables": tables}
        print(f"({name}: {result['parts'][name]['seconds']:.0f} s)", flush=True)
        if options.out is not None:
            options.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
