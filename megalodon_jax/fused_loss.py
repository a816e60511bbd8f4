"""Weighted sum of cross-entropies with its gradient formed beside it, chunk by chunk of tokens.

    z_t  = W h_t                                   loss = sum_t a_t (logsumexp(z_t) - z_t[y_t])
    dz_t = a_t (softmax(z_t) - onehot(y_t))        dh_t = W^T dz_t        dW = sum_t dz_t h_t^T

The gradient of a sum is known before its cotangent is, up to that one factor. So the forward forms the logits of a
chunk once, reads them once for their statistics, turns them into dz where they lie, and multiplies that by W and h
before the next chunk comes; the backward multiplies by the cotangent. Operands of products have the dtype of h;
statistics, losses and dW are float32.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Int

_dot = partial(jnp.einsum, precision=lax.Precision.HIGHEST)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def weighted_loss(
    hidden: Float[Array, "B L D"],
    weight: Float[Array, "V D"],
    targets: Int[Array, "B L"],
    factors: Float32[Array, "B L"],
    chunk: int,
    accum_dtype,
) -> Float32[Array, ""]:
    """Sum of factors * cross-entropy(hidden @ weight.T, targets), with at most `chunk` rows of logits at a time.

    Differentiable once and in reverse, in `hidden` and `weight`; `factors` are constants. The weight is rounded to the
    dtype of `hidden`, its gradient to nothing but its own dtype. A token of factor 0 adds nothing; a target outside
    [0, V) with another factor makes the result NaN.
    """
    weight = weight.astype(hidden.dtype)

    def losses(rows):
        h, y, a = rows
        return _losses(_logits(h, weight, accum_dtype), y, a)[0]

    return jnp.sum(lax.map(losses, _chunks(hidden, targets, factors, weight.shape[0], chunk)))


def _forward(hidden, weight, targets, factors, chunk, accum_dtype):
    w, dtype = weight.astype(hidden.dtype), hidden.dtype

    def step(dw, rows):
        h, y, a = rows
        z = _logits(h, w, accum_dtype)
        losses, top, total = _losses(z, y, a)
        hit = lax.broadcasted_iota(y.dtype, z.shape, 1) == y[:, None]
        dz = jnp.exp(z.astype(jnp.float32) - top[:, None]) / total[:, None] - hit.astype(jnp.float32)
        counts = (a != 0)[:, None]  # what a token of factor 0 holds reaches nothing
        dz, h = jnp.where(counts, dz * a[:, None], 0).astype(dtype), jnp.where(counts, h, 0)
        dh = _dot("tv,vd->td", dz, w, preferred_element_type=_result(dtype, accum_dtype)).astype(dtype)
        return dw + _dot("tv,td->vd", dz, h, preferred_element_type=jnp.float32), (losses, dh)

    chunks = _chunks(hidden, targets, factors, weight.shape[0], chunk)
    dw, (losses, dh) = lax.scan(step, jnp.zeros(weight.shape, jnp.float32), chunks)
    dh = dh.reshape(-1, hidden.shape[-1])[: targets.size].reshape(hidden.shape)
    return jnp.sum(losses), (dh, dw.astype(weight.dtype))


def _backward(chunk, accum_dtype, saved, cotangent):
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


def _logits(hidden: Float[Array, "T D"], weight: Float[Array, "V D"], accum_dtype) -> Float[Array, "T V"]:
    result = _result(hidden.dtype, accum_dtype)
    return _dot("td,vd->tv", hidden, weight, preferred_element_type=result).astype(hidden.dtype)


def _result(dtype, accum_dtype):
    """The dtype to ask of a product: a bfloat16 one is summed in float32 all the same, and rounded on its way out."""
    return dtype if dtype == jnp.bfloat16 else accum_dtype


def _losses(
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
