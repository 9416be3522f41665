"""A generation of an evolution strategy in JAX, as its users write it: jit, and members under vmap.

    python benchmarks/generation_jax.py SAMPLES POPULATION [POPULATION ...]

OpenES on MLP 784-64-10 and one minibatch: mirrored noise, cross-entropy, centred ranks, and the gradient. It prints a
JSON object: for each population the median milliseconds of a generation. It is a process of its own, since JAX and
torch bring CUDA libraries of different versions.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

SIGMA, INPUTS, HIDDEN, CLASSES = 0.02, 784, 64, 10
_GROUPS, _GROUP = 5, 0.03  # groups of calls, and seconds that one takes


def generation(samples: int, size: int) -> Callable[[], Any]:
    """Return a function that computes one generation of `size` members (an even number) and waits for the result."""
    import jax
    import jax.numpy as jnp

    x = jax.random.normal(jax.random.key(0), (samples, INPUTS))
    y = jnp.arange(samples) % CLASSES
    shapes = [(INPUTS, HIDDEN), (HIDDEN,), (HIDDEN, CLASSES), (CLASSES,)]
    parameters = [0.05 * jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)]

    def loss(member: list[Any]) -> Any:
        hidden = jax.nn.relu(x @ member[0] + member[1])
        likely = jax.nn.log_softmax(hidden @ member[2] + member[3])
        return -jnp.take_along_axis(likely, y[:, None], axis=1).mean()

    @jax.jit
    def gradients(key: Any, parameters: list[Any]) -> list[Any]:
        keys = jax.random.split(key, len(shapes))
        half = [jax.random.normal(k, (size // 2, *p.shape)) for k, p in zip(keys, parameters, strict=True)]
        noise = [jnp.concatenate([e, -e]) for e in half]
        scores = jax.vmap(loss)([p + SIGMA * e for p, e in zip(parameters, noise, strict=True)])
        weights = scores.argsort().argsort() / (size - 1) - 0.5
        return [jnp.tensordot(weights, e, 1) / (size * SIGMA) for e in noise]

    numbers = iter(range(10**9))
    return lambda: gradients(jax.random.key(next(numbers)), parameters)


def milliseconds(call: Callable[[], Any]) -> float:
    """Return the median milliseconds over groups of calls; the device is idle before and after each group."""
    import jax

    jax.block_until_ready(call())
    start = time.perf_counter()
    jax.block_until_ready(call())
    calls = min(max(int(_GROUP / (time.perf_counter() - start)), 1), 200)
    spent = []
    for _ in range(_GROUPS):
        start = time.perf_counter()
        for _ in range(calls):
            found = call()
        jax.block_until_ready(found)
        spent.append(1e3 * (time.perf_counter() - start) / calls)
    return statistics.median(spent)


if __name__ == "__main__":
    batch, *sizes = map(int, sys.argv[1:])
    print(json.dumps({size: milliseconds(generation(batch, size)) for size in sizes}))
