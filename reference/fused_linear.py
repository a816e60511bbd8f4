r"""A linear layer with an activation in front of it and a residual behind it, pure jnp.

    y = act(x + x_bias) W^T + bias + residual        act = silu or the identity

Products have operands of the dtype of x; they are summed in float32, where everything is added, and rounded once.
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32

from reference.gating import activated


@partial(jax.jit, static_argnames="activation")
def fused_linear(
    x: Float[Array, "B L D"],
    weight: Float[Array, "O D"],
    bias: Float32[Array, " O"] | None = None,
    *,
    x_bias: Float32[Array, " D"] | None = None,
    residual: Float[Array, "B L O"] | None = None,
    activation: Literal["silu"] | None = None,
) -> Float[Array, "B L O"]:
    """Reference fused_linear; arguments, shapes and meaning as in `pallas_kernels.fused_linear`."""
    dtype = x.dtype
    if activation is not None:
        x = activated(x, x_bias)
    elif x_bias is not None:
        x = (x.astype(jnp.float32) + x_bias).astype(dtype)
    y = jnp.einsum(
        "bld,od->blo", x, weight.astype(dtype), precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )
    for term in (bias, residual):
        y = y if term is None else y + term.astype(jnp.float32)
    return y.astype(dtype)
