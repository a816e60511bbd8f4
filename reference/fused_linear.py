r"""Linear layers with an activation in front of them and a residual behind them, pure jnp.

    y = a W^T + bias + residual        a = act(x + x_bias) silu(gate + gate_bias),    act = silu or the identity

the second factor where there is a gate. Products have operands of the dtype of x; they are summed in float32, where
everything is added, and rounded once.
"""

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32

from reference.gating import biased_silu


class Layer(NamedTuple):
    """One of the layers that share x."""

    weight: Float[Array, "O D"]
    bias: Float32[Array, " O"] | None
    residual: Float[Array, "B L O"] | None


def layers_of(weight, bias=None, residual=None) -> tuple[Layer, ...]:
    """The layers of a call: of one array each (or None), or of as many as there are weights."""
    weights = weight if isinstance(weight, tuple) else (weight,)
    each = (part if isinstance(part, tuple) else (part,) * len(weights) for part in (bias, residual))
    return tuple(Layer(*parts) for parts in zip(weights, *each, strict=True))


@partial(jax.jit, static_argnames="activation")
def fused_linear(
    x: Float[Array, "B L D"],
    weight,
    bias=None,
    *,
    x_bias: Float32[Array, " D"] | None = None,
    gate: Float[Array, "B L D"] | None = None,
    gate_bias: Float32[Array, " D"] | None = None,
    residual=None,
    activation: Literal["silu"] | None = None,
    rounded=None,
):
    """Reference fused_linear; arguments, shapes and meaning as in `pallas_kernels.fused_linear`.

    `rounded` is not looked at: weights are rounded here.
    """
    dtype = x.dtype
    if activation is not None or x_bias is not None or gate is not None:
        wide = x.astype(jnp.float32) if x_bias is None else x.astype(jnp.float32) + x_bias
        wide = wide if activation is None else jax.nn.silu(wide)
        x = (wide if gate is None else wide * biased_silu(gate, gate_bias)).astype(dtype)
    ys = tuple(_linear(x, layer) for layer in layers_of(weight, bias, residual))
    return ys if isinstance(weight, tuple) else ys[0]


def _linear(x, layer: Layer):
    weight = layer.weight.astype(x.dtype)
    y = jnp.einsum("bld,od->blo", x, weight, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
    for term in (layer.bias, layer.residual):
        y = y if term is None else y + term.astype(jnp.float32)
    return y.astype(x.dtype)
