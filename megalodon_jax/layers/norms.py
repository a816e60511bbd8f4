"""Normalisation over features.

    RMSNorm           y = x / sqrt(mean(x^2) + eps) * (1 + gamma)
    BatchedLayerNorm  y = (x - mean) / sqrt(var + eps) * weight + bias     (1 + weight if stored minus one)

Statistics in float32; the normalised value is rounded to the input dtype before the affine map.
"""

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32


class RMSNorm(eqx.Module):
    """Root-mean-square norm over the last axis; gain stored minus one."""

    gamma: Float[Array, " D"] | None
    dim: int = eqx.field(static=True)
    eps: float = eqx.field(static=True)
    affine: bool = eqx.field(static=True)

    def __init__(self, dim: int, eps: float = 1e-6, affine: bool = True, *, key=None):
        self.dim, self.eps, self.affine = dim, eps, affine
        self.gamma = jnp.zeros(dim, jnp.float32) if affine else None

    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        y = rms_normalize(x, self.eps).astype(x.dtype)
        return y if self.gamma is None else y * (self.gamma + 1.0).astype(x.dtype)


class BatchedLayerNorm(eqx.Module):
    """Layer norm over the last axis; gain stored as it is, or minus one."""

    weight: Float[Array, " D"] | None
    bias: Float[Array, " D"] | None
    dim: int = eqx.field(static=True)
    eps: float = eqx.field(static=True)
    affine: bool = eqx.field(static=True)
    minus_one: bool = eqx.field(static=True)

    def __init__(self, dim: int, eps: float = 1e-5, affine: bool = True, *, minus_one: bool = False, key=None):
        self.dim, self.eps, self.affine, self.minus_one = dim, eps, affine, minus_one
        self.weight = jnp.full(dim, 0.0 if minus_one else 1.0, jnp.float32) if affine else None
        self.bias = jnp.zeros(dim, jnp.float32) if affine else None

    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        centred = x.astype(jnp.float32) - jnp.mean(x.astype(jnp.float32), -1, keepdims=True)
        y = rms_normalize(centred, self.eps).astype(x.dtype)
        if self.weight is None or self.bias is None:
            return y
        gain = self.weight + 1.0 if self.minus_one else self.weight
        return y * gain.astype(x.dtype) + self.bias.astype(x.dtype)


def rms_normalize(x: Float[Array, "*batch D"], eps: float) -> Float32[Array, "*batch D"]:
    """x / sqrt(mean(x^2) + eps) over the last axis, in float32."""
    x = x.astype(jnp.float32)
    return x * lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + eps)
