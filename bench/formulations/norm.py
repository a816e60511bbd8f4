r"""The norm over time by cumulative sums, as it is usually written in JAX.

With u[t] the mean of a group's features at t, and n = 1, 2, ... tokens so far,

    mean[t] = sum_{j<=t} u[j] / n           M2[t] = 1 + sum_{j<=t} (u[j] - mean[j-1]) (u[j] - mean[j])
    var[t]  = max(M2[t] / n, 1e-6)

The prior counts as one observation of variance 1. From no state, without masks and documents. A mean that is large
beside the spread loses what a sum of many terms loses.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float32

FLOOR = 1e-6


def cumulative_sums(
    x: Float32[Array, "B L D"],
    weight: Float32[Array, " D"],
    bias: Float32[Array, " D"],
    *,
    num_groups: int,
    eps: float = 1e-5,
) -> tuple[Float32[Array, "B L D"], Float32[Array, "B G"], Float32[Array, "B G"]]:
    """y, and mean and variance at the end of the sequence."""
    grouped = x.reshape(*x.shape[:2], num_groups, -1)
    u, n = grouped.mean(-1), jnp.arange(1, x.shape[1] + 1, dtype=jnp.float32)[:, None]
    mean = jnp.cumsum(u, 1) / n
    before = jnp.pad(mean, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    spread = jnp.where(n == 1, 0.0, (u - before) * (u - mean))
    var = jnp.maximum((1.0 + jnp.cumsum(spread, 1)) / n, FLOOR)
    y = ((grouped - mean[..., None]) * lax.rsqrt(var + eps)[..., None]).reshape(x.shape)
    return y * (1.0 + weight) + bias, mean[:, -1], var[:, -1]
