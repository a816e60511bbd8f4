"""Norms over features, in float32, rounded once.

RMSNorm     y = x / sqrt(mean(x^2) + eps) * weight
LayerNorm   y = (x - mean) / sqrt(var + eps) * weight + bias
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from pallas_kernels import feature_norm


class RMSNorm(eqx.Module):
    """Root-mean-square norm over the last axis."""

    weight: Float32[Array, " D"]
    eps: float = eqx.field(static=True)

    def __init__(self, dim: int, eps: float):
        self.weight, self.eps = jnp.ones(dim, jnp.float32), eps

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        return feature_norm(x, self.weight, centred=False, eps=self.eps)


class LayerNorm(eqx.Module):
    """Layer norm over the last axis, with or without a bias."""

    weight: Float32[Array, " D"]
    bias: Float32[Array, " D"] | None
    eps: float = eqx.field(static=True)

    def __init__(self, dim: int, eps: float, use_bias: bool):
        self.weight, self.eps = jnp.ones(dim, jnp.float32), eps
        self.bias = jnp.zeros(dim, jnp.float32) if use_bias else None

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        return feature_norm(x, self.weight, self.bias, centred=True, eps=self.eps)
