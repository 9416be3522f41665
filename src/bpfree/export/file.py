"""Write an exported file, after a check that it computes what the run computes."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bpfree.data.scaling import Scaling
from bpfree.disk.atomic import make_folder, write_atomically
from bpfree.disk.paths import user_path
from bpfree.errors import UserError, check_choice
from bpfree.export.predictor import Predictor
from bpfree.export.programs import FORMS, Answer, trace
from bpfree.export.samples import samples_like

BATCHES = (1, 3, 64)
"""The numbers of samples with which a file is checked."""
TOLERANCE = 1e-5
"""The largest difference allowed, relative to the largest value of the output if that is above 1."""


class Exported(NamedTuple):
    """A file that was written, and how exactly it computes what the run computes.

    Attributes:
        path: the file.
        difference: the largest difference from torch over batches of 1, 3 and 64 samples, relative to the largest value
            of the output if that is above 1; None if onnxruntime, which would run the file, is not installed.
        runtime: the name of what runs the file in the check.
    """

    path: Path
    difference: float | None
    runtime: str


def write(
    predictor: Predictor, scaling: Scaling, path: str | Path, facts: Mapping[str, Any], form: str | None = None
) -> Exported:
    """Write a predictor to a file, if the file computes what the predictor computes.

    Args:
        predictor: the module; it stays as it is.
        scaling: the form of its raw samples.
        path: the file; a file that is there is replaced.
        facts: plain values that become metadata of the file.
        form: "onnx" or "torch". Default: by the end of the path, .onnx or .pt2.

    Raises:
        UserError: the path does not end as its form does, a package is missing, the net cannot be traced, the file
            computes something else than torch, or it cannot be written.
    """
    path = user_path(path, "path")
    chosen = FORMS[_form_of(path, form)]
    # An exported file runs anywhere, so it is made and checked on the CPU.
    predictor = copy.deepcopy(predictor).to("cpu")
    samples = samples_like(scaling, BATCHES[-1])
    program = trace(predictor, samples)
    data = chosen.encode(program, predictor, {**facts, **_signature(predictor, samples)})
    difference = _checked(predictor, chosen.open(data), samples, path)
    make_folder(path.parent)
    write_atomically(path, lambda temporary: temporary.write_bytes(data))
    return Exported(path, difference, chosen.runtime)


def _form_of(path: Path, form: str | None) -> str:
    """Return the name of the form that a path or the user names."""
    if form is not None:
        check_choice("format", form, FORMS)
    by_suffix = {each.suffix: name for name, each in FORMS.items()}
    if path.suffix not in by_suffix or form not in (None, by_suffix[path.suffix]):
        allowed = " or ".join(f"{suffix} ({name})" for suffix, name in by_suffix.items() if form in (None, name))
        raise UserError(f"path: found {path.name}, allowed: a name that ends in {allowed}")
    return by_suffix[path.suffix]


def _signature(predictor: Predictor, samples: tuple[Tensor, ...]) -> dict[str, Any]:
    """Return the names, shapes and types of the inputs, and the name of the output, as plain values."""
    inputs = [
        {"name": name, "shape": ["batch", *x.shape[1:]], "dtype": str(x.dtype).removeprefix("torch.")}
        for name, x in zip(predictor.names, samples, strict=True)
    ]
    return {"inputs": inputs, "output": predictor.output}


def _checked(predictor: Predictor, answer: Answer | None, samples: tuple[Tensor, ...], path: Path) -> float | None:
    """Return the largest difference between a file and torch, or raise UserError if it is too large."""
    if answer is None:
        return None
    largest = 0.0
    for count in BATCHES:
        batch = tuple(x[:count] for x in samples)
        with torch.no_grad():
            expected, found = predictor.answer(batch), answer(batch)
        if found.shape != expected.shape:
            raise UserError(
                f"{path}: not written, since the exported net gives {list(found.shape)} for {count} samples where "
                f"torch gives {list(expected.shape)}. Its forward may keep the number of samples as a constant"
            )
        scale = max(1.0, float(expected.abs().max()))
        largest = max(largest, float((found.double() - expected.double()).abs().max()) / scale)
    if not largest <= TOLERANCE:  # also if it is NaN
        raise UserError(
            f"{path}: not written, since the exported net differs from torch by {largest:.1e}, allowed: {TOLERANCE}. "
            "Does the net draw random numbers in evaluation mode?"
        )
    return largest
