"""The forms of an exported file: a program of torch.export, or an ONNX model made from it."""

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bpfree.diffusion import DiffusionRule
from bpfree.errors import UserError
from bpfree.export.predictor import Predictor
from bpfree.spec.extras import library

Facts = Mapping[str, Any]
"""Plain values about a run, which become metadata of the file."""
Answer = Callable[[tuple[Tensor, ...]], Tensor]
"""A function that runs an exported file: raw inputs in order -> the output."""

METADATA = "metadata.json"  # in a .pt2 file, which is a zip archive
_TRACED = 2  # samples of the batch that is traced; torch.export would keep a batch of 1 as a constant
_OWN_SOLVERS = ("euler", "heun")
_LARGEST = 2 * 1024**3  # bytes of an ONNX file, which is a protobuf message


class Form(NamedTuple):
    """A form of exported files.

    Attributes:
        suffix: the end of a file's name.
        encode: (program, predictor, facts) -> the bytes of the file.
        open: the bytes -> a function that runs the file, or None if the package that runs it is not installed.
        runtime: the name of what runs the file.
    """

    suffix: str
    encode: Callable[[Any, Predictor, Facts], bytes]
    open: Callable[[bytes], Answer | None]
    runtime: str


class _Traced(nn.Module):
    """The part of a predictor that is traced: without its settings of torch, and with inputs in a fixed order."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.predictor = predictor

    def forward(self, *x: Tensor) -> Tensor:
        """Return the output for the raw inputs in order."""
        return self.predictor.answer(x)


def trace(predictor: Predictor, samples: tuple[Tensor, ...]) -> Any:
    """Return a program of torch.export whose batch may have any size.

    Args:
        predictor: on the CPU.
        samples: raw inputs, for their shapes and types.

    Raises:
        UserError: the inference of the rule or the forward pass of the net cannot be traced.
    """
    _refuse(predictor)
    batch = torch.export.Dim("batch")
    shapes = (tuple({0: batch} for _ in samples),)
    with torch.no_grad(), _quiet():
        try:
            return torch.export.export(
                _Traced(predictor), tuple(x[:_TRACED] for x in samples), dynamic_shapes=shapes, strict=False
            )
        except Exception as error:  # whatever the code of a user's net raises when it runs on tensors without values
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"export: torch.export cannot trace {type(predictor.net).__name__} ({reason}). Write its forward with "
                "operations on tensors: x.shape[0] in place of len(x), and no `if` on the values of a tensor. "
                "run.as_module() needs no tracing"
            ) from error


def _refuse(predictor: Predictor) -> None:
    """Raise UserError for inference that a file cannot hold."""
    rule = predictor.rule
    if not isinstance(rule, DiffusionRule):
        return
    cure = "Load the run with another one: bpfree.load(folder, overrides=['{}'])"
    if rule.inference == "stochastic":
        raise UserError(
            "export: found rule.inference=stochastic, which draws noise from a key of bpfree, allowed: deterministic. "
            + cure.format("rule.inference=deterministic")
        )
    solver = getattr(rule, "solver", "euler")
    if solver not in _OWN_SOLVERS:
        raise UserError(
            f"export: found rule.solver={solver} of torchdiffeq, which looks at the values that it computes, allowed: "
            f"{', '.join(_OWN_SOLVERS)}. " + cure.format("rule.solver=heun")
        )


def _encode_torch(program: Any, predictor: Predictor, facts: Facts) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={METADATA: json.dumps(facts, indent=1)})
    return buffer.getvalue()


def _open_torch(data: bytes) -> Answer:
    run = torch.export.load(io.BytesIO(data)).module()
    return lambda samples: run(*samples)


def _encode_onnx(program: Any, predictor: Predictor, facts: Facts) -> bytes:
    for package in ("onnx", "onnxscript"):
        library(package, "export", "export")
    size = sum(t.numel() * t.itemsize for t in program.state_dict.values())
    if size > _LARGEST:
        raise UserError(
            f"export: the weights take {size / 1024**3:.1f} GiB, allowed in one ONNX file: 2 GiB. Use format torch"
        )
    with _quiet():
        made = torch.onnx.export(
            program,
            input_names=list(predictor.names),
            output_names=[predictor.output],
            dynamo=True,
            verbose=False,
        )
    assert made is not None
    model = made.model_proto
    for key, value in facts.items():
        model.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))
    data: bytes = model.SerializeToString()
    return data


def _open_onnx(data: bytes) -> Answer | None:
    try:
        runtime = import_module("onnxruntime")
    except ImportError:
        return None
    session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def answer(samples: tuple[Tensor, ...]) -> Tensor:
        inputs = {name: x.numpy() for name, x in zip(names, samples, strict=True)}
        return torch.from_numpy(session.run(None, inputs)[0])

    return answer


FORMS = {
    "onnx": Form(".onnx", _encode_onnx, _open_onnx, "onnxruntime"),
    "torch": Form(".pt2", _encode_torch, _open_torch, "torch.export"),
}


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what torch's exporters tell about themselves: warnings of their own code, and lines of the log."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)
