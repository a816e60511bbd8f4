r"""The arithmetic of fused_linear on tiles; products are summed in float32, everything else is float32.

    a = act(x + x_bias)        y = a W^T + bias + residual        act = silu, silu(u) = u sigmoid(u), or the identity

a is rounded to the dtype of x, as the operands of a product are, y once at the end. Backward:

    da = dy W                  dx = da act'(x + x_bias)           dx_bias = sum_t dx
    dW = dy^T a                dbias = sum_t dy                   dresidual = dy

a is made again for dW. Where there is nothing to add and no activation, a is x itself.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from pallas_kernels.chunked_attention.math import silu, silu_slope

Activation = Literal["silu"] | None


def activated(x: Float[Array, "M N"], x_bias: Float32[Array, " N"] | None, activation: Activation) -> jax.Array:
    """a, in the dtype of x."""
    if activation is None and x_bias is None:
        return x
    u = _biased(x, x_bias)
    return (u if activation is None else silu(u)).astype(x.dtype)


def through(
    da: Float32[Array, "M N"], x: Float[Array, "M N"], x_bias: Float32[Array, " N"] | None
) -> Float32[Array, "M N"]:
    """dx of silu."""
    return da * silu_slope(_biased(x, x_bias))


def _biased(x, x_bias) -> jax.Array:
    wide = x.astype(jnp.float32)
    return wide if x_bias is None else wide + x_bias[None]
