"""A generation of an evolution strategy in JAX, as its users write it: jit, and members under vmap."""

from typing import Any

from clock import Call

from bpfree.types import Batch

SIGMA, HIDDEN, CLASSES = 0.02, 64, 10


def jax_openes(batch: Batch, size: int) -> Call:
    """OpenES on MLP 784-64-10: mirrored noise, cross-entropy, centred ranks, and the gradient.

    Args:
        batch: samples [B, ...] and labels [B]; they are copied to JAX's own device.
        size: members, an even number.

    Raises:
        ImportError: JAX is not installed.
    """
    import jax
    import jax.numpy as jnp

    x, y = jnp.asarray(batch.tensor.flatten(1).cpu().numpy()), jnp.asarray(batch.y.cpu().numpy())
    shapes = [(x.shape[1], HIDDEN), (HIDDEN,), (HIDDEN, CLASSES), (CLASSES,)]
    parameters = [0.05 * jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)]

    def loss(member: list[Any]) -> Any:
        hidden = jax.nn.relu(x @ member[0] + member[1])
        likely = jax.nn.log_softmax(hidden @ member[2] + member[3])
        return -jnp.take_along_axis(likely, y[:, None], axis=1).mean()

    @jax.jit
    def generation(key: Any, parameters: list[Any]) -> list[Any]:
        keys = jax.random.split(key, len(shapes))
        half = [jax.random.normal(k, (size // 2, *p.shape)) for k, p in zip(keys, parameters, strict=True)]
        noise = [jnp.concatenate([e, -e]) for e in half]
        scores = jax.vmap(loss)([p + SIGMA * e for p, e in zip(parameters, noise, strict=True)])
        weights = scores.argsort().argsort() / (size - 1) - 0.5
        return [jnp.tensordot(weights, e, 1) / (size * SIGMA) for e in noise]

    numbers = iter(range(10**9))
    return lambda: jax.block_until_ready(generation(jax.random.key(next(numbers)), parameters))
