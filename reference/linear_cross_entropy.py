r"""Losses of an output head and the gradients of their weighted sum, from one set of logits, pure jnp.

    z_t  = W h_t                                   losses_t = a_t (logsumexp(z_t) - z_t[y_t])
    dz_t = a_t (softmax(z_t) - onehot(y_t))        dh_t = W^T dz_t        dW = sum_t dz_t h_t^T

Operands of products have the dtype of h, to which logits are rounded; statistics, losses and dW are float32.
"""

from functools import partial

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Int

_dot = partial(jnp.einsum, precision=lax.Precision.HIGHEST)


def linear_cross_entropy(
    hidden: Float[Array, "T D"],
    weight: Float[Array, "V D"],
    targets: Int[Array, " T"],
    factors: Float32[Array, " T"],
    *,
    so_far: Float32[Array, "V D"] | None = None,
    accum_dtype=jnp.float32,
) -> tuple[Float32[Array, " T"], Float[Array, "T D"], Float32[Array, "V D"]]:
    """Reference linear_cross_entropy; arguments, shapes and meaning as in `pallas_kernels.linear_cross_entropy`.

    `accum_dtype` is asked of float32 products; a bfloat16 one is summed in float32 all the same.
    """
    dtype = hidden.dtype
    z = logits(hidden, weight, accum_dtype)
    losses, top, total = weighted_losses(z, targets, factors)
    hit = lax.broadcasted_iota(targets.dtype, z.shape, 1) == targets[:, None]
    dz = jnp.exp(z.astype(jnp.float32) - top[:, None]) / total[:, None] - hit.astype(jnp.float32)
    counts = (factors != 0)[:, None]  # what a token of factor 0 holds reaches nothing
    dz, h = jnp.where(counts, dz * factors[:, None], 0).astype(dtype), jnp.where(counts, hidden, 0)
    dh = _dot("tv,vd->td", dz, weight, preferred_element_type=_result(dtype, accum_dtype)).astype(dtype)
    dw = _dot("tv,td->vd", dz, h, preferred_element_type=jnp.float32)
    return losses, dh, dw if so_far is None else so_far + dw


def logits(hidden: Float[Array, "T D"], weight: Float[Array, "V D"], accum_dtype) -> Float[Array, "T V"]:
    """hidden @ weight.T in the dtype of hidden."""
    result = _result(hidden.dtype, accum_dtype)
    return _dot("td,vd->tv", hidden, weight, preferred_element_type=result).astype(hidden.dtype)


def weighted_losses(
    logits: Float[Array, "T V"], targets: Int[Array, " T"], factors: Float32[Array, " T"]
) -> tuple[Float32[Array, " T"], Float32[Array, " T"], Float32[Array, " T"]]:
    """Weighted losses, and what softmax needs: maximum m and sum of exp(z - m), both from one reading of the logits."""

    def join(a, b):
        (top_a, sum_a), (top_b, sum_b) = a, b
        fall = jnp.exp(-jnp.abs(top_a - top_b))
        return jnp.maximum(top_a, top_b), jnp.where(top_a >= top_b, sum_a + sum_b * fall, sum_a * fall + sum_b)

    z = logits.astype(jnp.float32)
    start = jnp.finfo(jnp.float32).min, jnp.float32(0)
    top, total = lax.reduce((z, jnp.ones_like(z)), start, join, (1,))
    picked = jnp.take_along_axis(z, targets[:, None], axis=1, mode="clip")[:, 0]
    return jnp.where(factors == 0, 0, factors * (top + jnp.log(total) - picked)), top, total


def _result(dtype, accum_dtype):
    """The dtype to ask of a product: a bfloat16 one is summed in float32, and rounded on its way out."""
    return dtype if dtype == jnp.bfloat16 else accum_dtype
