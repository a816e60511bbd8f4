r"""The arithmetic of fused_linear on tiles; products are summed in float32, everything else is float32.

    u = x + x_bias      h = act(u)      g = gate + gate_bias      a = h silu(g)      y_i = a W_i^T + bias_i + residual_i

with act = silu, silu(u) = u sigmoid(u), or the identity, for each layer i; without a gate a is h. a is rounded to the
dtype of x, as the operands of a product are, y once at the end. Backward:

    da = sum_i dy_i W_i        dx = da silu(g) act'(u)        dx_bias = sum_t dx
                               dgate = da h silu'(g)          dgate_bias = sum_t dgate
    dW_i = dy_i^T a            dbias_i = sum_t dy_i           dresidual_i = dy_i

For dW an activation is made again, a gated a is kept from dx. Where there is nothing to add, no activation and no gate,
a is x itself.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from pallas_kernels.chunked_attention.math import silu, silu_slope

Activation = Literal["silu"] | None
Tile = Float[Array, "M N"]
Row = Float32[Array, " N"]


class Front(NamedTuple):
    """What is in front of the product: tiles of x and of the gate, and parts of their biases; None where there is none.

    Without a gate and an activation x may be None where its value does not matter.
    """

    x: Tile | None
    x_bias: Row | None = None
    gate: Tile | None = None
    gate_bias: Row | None = None


def activated(front: Front, activation: Activation) -> jax.Array:
    """a, in the dtype of x."""
    assert front.x is not None
    if activation is None and front.x_bias is None and front.gate is None:
        return front.x
    h = _h(front, activation)
    return (h if front.gate is None else h * silu(_biased(front.gate, front.gate_bias))).astype(front.x.dtype)


def through(
    da: Float32[Array, "M N"], front: Front, activation: Activation
) -> tuple[Float32[Array, "M N"], Float32[Array, "M N"] | None]:
    """(dx, dgate)."""
    opened, dgate = da, None
    if front.gate is not None:
        g = _biased(front.gate, front.gate_bias)
        opened, dgate = da * silu(g), da * _h(front, activation) * silu_slope(g)
    return (opened if activation is None else opened * silu_slope(_biased(front.x, front.x_bias))), dgate


def _h(front: Front, activation: Activation):
    u = _biased(front.x, front.x_bias)
    return u if activation is None else silu(u)


def _biased(x, bias) -> jax.Array:
    wide = x.astype(jnp.float32)
    return wide if bias is None else wide + bias[None]
