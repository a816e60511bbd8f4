"""What a gate does to attention, in float32.

silu(x) = x sigmoid(x)        values = silu(v + v_bias)        result = o silu(gate + gate_bias)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32


class Gate(NamedTuple):
    """What values have added before their activation; the gate of each token (None: there is none) and what it has."""

    v_bias: Float32[Array, "H V"] | None
    gate: Float[Array, "B L H V"] | None = None
    gate_bias: Float32[Array, "H V"] | None = None


def biased_silu(x: Float[Array, "*x"], bias: Float[Array, "*#bias"] | None) -> Float32[Array, "*x"]:
    """silu(x + bias)."""
    x = x.astype(jnp.float32)
    return jax.nn.silu(x if bias is None else x + bias.astype(jnp.float32))


def activated(x: Float[Array, "*x"], bias: Float[Array, "*#bias"] | None) -> Float[Array, "*x"]:
    """silu(x + bias), in the dtype of x."""
    return biased_silu(x, bias).astype(x.dtype)


def gated(o: Float[Array, "*x"], gate: Float[Array, "*x"], bias: Float[Array, "*#bias"] | None) -> Float[Array, "*x"]:
    """o silu(gate + bias), in the dtype of o."""
    return (o.astype(jnp.float32) * biased_silu(gate, bias)).astype(o.dtype)
