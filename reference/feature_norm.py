r"""Normalisation over features, pure jnp.

    y = (x - mean) / sqrt(mean((x - mean)^2) + eps) gain + bias     centred: layer norm
    y = x / sqrt(mean(x^2) + eps) gain + bias                       not centred: RMS norm

with gain = weight, or weight + 1 if it is stored minus one. Float32 throughout, rounded once at the end. The backward
forms n and the statistics again, so that nothing but the arguments is kept for it.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32


@partial(jax.jit, static_argnames=("centred", "minus_one", "eps"))
def feature_norm(
    x: Float[Array, "B L D"],
    weight: Float32[Array, " D"] | None = None,
    bias: Float32[Array, " D"] | None = None,
    *,
    centred: bool,
    minus_one: bool = False,
    eps: float = 1e-5,
) -> Float[Array, "B L D"]:
    """Reference feature_norm; arguments, shapes and meaning as in `pallas_kernels.feature_norm`."""

    @jax.checkpoint
    def norm(x, weight, bias):
        wide = x.astype(jnp.float32)
        if centred:
            wide = wide - jnp.mean(wide, -1, keepdims=True)
        y = wide * lax.rsqrt(jnp.mean(jnp.square(wide), -1, keepdims=True) + eps)
        y = y if weight is None else y * (weight + 1.0 if minus_one else weight)
        y = y if bias is None else y + bias
        return y.astype(x.dtype)

    return norm(x, weight, bias)
