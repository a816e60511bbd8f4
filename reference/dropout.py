"""Inverted dropout."""

import jax
import jax.numpy as jnp


def dropout(x: jax.Array, rate: float, key) -> jax.Array:
    """Zero each element with probability `rate` and scale the others by 1 / (1 - rate); rate 1 gives zeros."""
    if rate == 1.0:
        return jnp.zeros_like(x)
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)
