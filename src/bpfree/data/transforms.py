"""Random changes by functions of the user, such as those of torchvision.transforms.v2 and kornia, drawn by key."""

import inspect
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bpfree.errors import UserError
from bpfree.noise import Noise
from bpfree.spec import Described, Spec, check_options, imported, split_spec

Transform = Callable[[Tensor], Tensor]
"""A function of samples [B, ...] that returns samples of the same shape."""

_SECTION = "data.augment.transforms"


class PerSample(Described):
    """A transform of a batch, made of a function of one sample, which is called for each sample by itself.

    A transform of torchvision draws once for all images that it gets, so that a whole batch is flipped, or none of it.
    Within `PerSample` it draws for each image.

    Args:
        function: one sample [C, H, W] -> a sample of the same shape.

    Raises:
        UserError: it is not a function.

    Example:
        >>> turned = PerSample(lambda x: x.rot90(1, (1, 2)))(torch.arange(4.0).view(1, 1, 2, 2))
        >>> turned.flatten().tolist()
        [1.0, 3.0, 0.0, 2.0]
    """

    def __init__(self, function: Transform) -> None:
        if not callable(function):
            raise UserError(f"PerSample: found {type(function).__name__}, allowed: a function of one sample")
        self.function = function

    def __call__(self, x: Tensor) -> Tensor:
        """Return the changed samples [B, ...].

        Args:
            x: samples [B, ...].
        """
        return torch.stack([self.function(sample) for sample in x])


def make_transform(spec: Spec) -> Transform:
    """Return the transform that a config names, which imports and executes code that is not part of bpfree.

    Args:
        spec: "package.module:name" of a function or a class, or a mapping with `name` and its options. The option
            `per_sample: true` calls it for each sample by itself.

    Raises:
        UserError: it cannot be imported or called with these options, or the config is untrusted.

    Example:
        >>> make_transform({"name": "torch:clamp", "max": 0.5})(torch.ones(1)).item()
        0.5
    """
    name, options = split_spec(spec, _SECTION)
    per_sample = options.pop("per_sample", False)
    if ":" not in name:
        raise UserError(f"{_SECTION}: found {name!r}, allowed: package.module:name of a function or a class")
    found = imported(name, _SECTION)
    try:
        if isinstance(found, type):
            made = found(**check_options(found, options, _SECTION))
        else:
            made = partial(found, **options) if options else found
    except (TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{_SECTION} {name}: {error}") from error
    if not callable(made):
        raise UserError(f"{_SECTION}: {name} is {type(made).__name__}, allowed: a function, or a class of callables")
    return PerSample(made) if per_sample else made


def split_augment(augment: Any) -> tuple[dict[str, Any], list[Transform]]:
    """Split what a user gave as `augment` into the section of the config and the functions.

    Args:
        augment: a section such as `{"flip": True}`, a function, or a list with at most one section, which comes first.

    Raises:
        UserError: it has another form.

    Example:
        >>> section, functions = split_augment([{"flip": True}, torch.relu])
        >>> section
        {'flip': True}
    """
    listed = list(augment) if isinstance(augment, Sequence) and not isinstance(augment, str) else [augment]
    section = dict(listed.pop(0)) if listed and isinstance(listed[0], Mapping) else {}
    for each in listed:
        if isinstance(each, Mapping):
            raise UserError("augment: found a section behind another element, allowed: one section, as the first")
        if isinstance(each, type) or not callable(each):
            found = f"the class {each.__name__}" if isinstance(each, type) else repr(each)
            raise UserError(f"augment: found {found}, allowed: a section such as {{'flip': True}}, and functions")
    return section, listed


def described(function: Transform) -> dict[str, Any]:
    """Return the spec that describes a function from Python in a config, for readers; `make_transform` may refuse it.

    Args:
        function: of the user.
    """
    inner = function.function if isinstance(function, PerSample) else function
    named = inner if inspect.isroutine(inner) else type(inner)
    spec = {"name": f"{named.__module__}:{named.__qualname__}"}
    return spec if inner is function else {**spec, "per_sample": True}


@torch.no_grad()
def transformed(x: Tensor, transforms: Sequence[Transform], noise: Noise, white: float | None) -> Tensor:
    """Return samples after transforms, each of which draws from a key of its own.

    The global generators of torch, numpy and Python start from the key, and have their own states again afterwards.

    Args:
        x: raw samples [B, ...].
        transforms: applied in this order.
        noise: the key of the batch.
        white: the raw value of white, if samples are images of bytes: transforms then get numbers from 0 to 1, as
            torchvision and kornia expect them. None: they get raw values.

    Returns:
        Raw samples [B, ...]; floating ones if `white` is given.

    Raises:
        UserError: a transform returns something else than samples of the same shape.
    """
    x = x if white is None else (x if x.is_floating_point() else x.float()) / white
    for place, transform in enumerate(transforms):
        if isinstance(transform, nn.Module):
            transform.to(x.device)
        with _keyed(noise.fold("augment", "transform", place), x.device):
            found = transform(x)
        if not isinstance(found, Tensor) or found.shape != x.shape or found.device != x.device:
            raise UserError(
                f"augment: {described(transform)['name']} returned {_shape(found)} for samples {_shape(x)}, allowed: "
                "samples of the same shape, on the same device"
            )
        x = found.to(x.dtype)
    return x if white is None else x * white


def _shape(x: Any) -> str:
    return f"{list(x.shape)} on {x.device}" if isinstance(x, Tensor) else type(x).__name__


@contextmanager
def _keyed(noise: Noise, device: torch.device) -> Iterator[None]:
    """Start the global generators of torch, numpy and Python from a key inside the block."""
    of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - what functions of users draw from
    random.seed(noise.key())
    np.random.seed(noise.key() % 2**32)  # noqa: NPY002
    try:
        with noise.global_rng(device):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)  # noqa: NPY002
