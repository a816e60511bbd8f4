"""Normalisation over features.

    RMSNorm           y = x / sqrt(mean(x^2) + eps) * (1 + gamma)
    BatchedLayerNorm  y = (x - mean) / sqrt(var + eps) * weight + bias     (1 + weight if stored minus one)

In float32, rounded once; nothing but x and the parameters is kept for the backward (`pallas_kernels.feature_norm`).
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels import feature_norm


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
        return _norm(x, self.gamma, None, centred=False, minus_one=True, eps=self.eps)


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
        return _norm(x, self.weight, self.bias, centred=True, minus_one=self.minus_one, eps=self.eps)


def _norm(x: Float[Array, "*batch D"], *parameters, **options) -> Float[Array, "*batch D"]:
    length = x.shape[-2] if x.ndim > 1 else 1
    weight, bias = (None if p is None else p.astype(jnp.float32) for p in parameters)
    return feature_norm(x.reshape(-1, length, x.shape[-1]), weight, bias, **options).reshape(x.shape)
