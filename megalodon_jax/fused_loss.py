"""Weighted sum of cross-entropies with its gradient formed beside it, chunk by chunk of tokens.

    z_t  = W h_t                                   loss = sum_t a_t (logsumexp(z_t) - z_t[y_t])
    dz_t = a_t (softmax(z_t) - onehot(y_t))        dh_t = W^T dz_t        dW = sum_t dz_t h_t^T

The gradient of a sum is known before its cotangent is, up to that one factor. So the forward forms the logits of a
chunk once, reads them once for their statistics, turns them into dz where they lie, and multiplies that by W and h
before the next chunk comes; the backward multiplies by the cotangent. Operands of products have the dtype of h;
statistics, losses and dW are float32. `pallas_kernels.linear_cross_entropy` does a chunk without dz in memory.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Int

from pallas_kernels import linear_cross_entropy
from reference.linear_cross_entropy import linear_cross_entropy as by_xla
from reference.linear_cross_entropy import logits, weighted_losses


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def weighted_loss(
    hidden: Float[Array, "B L D"],
    weight: Float[Array, "V D"],
    targets: Int[Array, "B L"],
    factors: Float32[Array, "B L"],
    chunk: int,
    accum_dtype: Any,
    fused: bool = False,
) -> Float32[Array, ""]:
    """Sum of factors * cross-entropy(hidden @ weight.T, targets), with at most `chunk` rows of logits at a time.

    Differentiable once and in reverse, in `hidden` and `weight`; `factors` are constants. The weight is rounded to the
    dtype of `hidden`, its gradient to nothing but its own dtype. A token of factor 0 adds nothing; a target outside
    [0, V) with another factor makes the result NaN. `fused` leaves each chunk to `pallas_kernels.linear_cross_entropy`.
    """
    weight = weight.astype(hidden.dtype)

    def losses(rows):
        h, y, a = rows
        if fused:
            return linear_cross_entropy(h, weight, y, a)[0]  # without the gradients, which nothing uses
        return weighted_losses(logits(h, weight, accum_dtype), y, a)[0]

    return jnp.sum(lax.map(losses, _chunks(hidden, targets, factors, weight.shape[0], chunk)))


def _forward(hidden, weight, targets, factors, chunk, accum_dtype, fused):
    w = weight.astype(hidden.dtype)
    of_chunk = linear_cross_entropy if fused else partial(by_xla, accum_dtype=accum_dtype)

    def step(dw, rows):
        h, y, a = rows
        losses, dh, dw = of_chunk(h, w, y, a, so_far=dw)
        return dw, (losses, dh)

    chunks = _chunks(hidden, targets, factors, weight.shape[0], chunk)
    dw, (losses, dh) = lax.scan(step, jnp.zeros(weight.shape, jnp.float32), chunks)
    dh = dh.reshape(-1, hidden.shape[-1])[: targets.size].reshape(hidden.shape)
    return jnp.sum(losses), (dh, dw.astype(weight.dtype))


def _backward(chunk, accum_dtype, fused, saved, cotangent):
    dh, dw = ((cotangent * d.astype(jnp.float32)).astype(d.dtype) for d in saved)
    return dh, dw, None, None


weighted_loss.defvjp(_forward, _backward)


def _chunks(hidden, targets, factors, vocabulary: int, chunk: int):
    """Rows of tokens in chunks of one size, at most `chunk`, filled up with tokens of factor 0."""
    known = (targets >= 0) & (targets < vocabulary)
    factors = jnp.where(known | (factors == 0), factors, jnp.nan)
    count = targets.size
    pieces = -(-count // chunk)
    size = -(-count // pieces)

    def cut(a, *features):
        rows = jnp.pad(a.reshape(count, *features), ((0, pieces * size - count), *((0, 0) for _ in features)))
        return rows.reshape(pieces, size, *features)

    return cut(hidden, hidden.shape[-1]), cut(targets), cut(factors)
