r"""The arithmetic of linear_cross_entropy. Logits z = h W^T are formed in blocks b of the vocabulary; for each token

    m_b = max over v in b of z_v      e_v = exp(z_v - m_b)      s_b = sum over v in b of e_v
    m   = max_b m_b                   s   = sum_b exp(m_b - m) s_b

    loss = a (m + log s - z_y)        dz_v = a (softmax(z)_v - [v = y]) = e_v exp(m_b - m) a / s - a [v = y]

    dh = dz W                         dW = dz^T h

What is written of the logits is e: an exponential is taken of each once, and where e is rounded to few bits the
gradient has that relative error, where a logit so rounded would change it by its own size times as much. An operand of
a product is rounded to the dtype of h, so dz is.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Int32

LEAST = float(jnp.finfo(jnp.float32).min)  # for a maximum to start from: differences to it are no NaN


class Softmax(NamedTuple):
    """Of every token: its factor a, its target y, m, and a / s."""

    factors: Float32[Array, " T"]
    targets: Int32[Array, " T"]
    top: Float32[Array, " T"]
    share: Float32[Array, " T"]


def exponentials(
    z: Float32[Array, "M N"], exist: jax.Array | None
) -> tuple[Float32[Array, "M N"], Float32[Array, " M"], Float32[Array, " M"]]:
    """e, m_b and s_b of a tile of logits; `exist` of its columns, None for all."""
    z = z if exist is None else jnp.where(exist[None], z, -jnp.inf)
    top = jnp.maximum(jnp.max(z, axis=1), LEAST)
    e = jnp.exp(z - top[:, None])
    return e, top, jnp.sum(e, axis=1)


def joined(
    tops: Float32[Array, "B T"],
    sums: Float32[Array, "B T"],
    picked: Float32[Array, " T"],
    factors: Float32[Array, " T"],
    targets: Int32[Array, " T"],
) -> tuple[Float32[Array, " T"], Softmax]:
    """Losses, and what gradients need, from the blocks' maxima and sums and the targets' logits."""

    def join(one, other):
        (top, total), (top_too, total_too) = one, other
        most = jnp.maximum(top, top_too)
        return most, total * jnp.exp(top - most) + total_too * jnp.exp(top_too - most)

    top, total = lax.reduce((tops, sums), (jnp.float32(LEAST), jnp.float32(0)), join, (0,))
    losses = jnp.where(factors == 0, 0, factors * (top + jnp.log(total) - picked))
    return losses, Softmax(factors, targets, top, factors / total)


def slope(e: Float[Array, "M N"], tops: jax.Array, words: Int32[Array, " N"], tokens: Softmax) -> Float32[Array, "M N"]:
    """dz of a tile: its e, its m_b ([M] of one block, [M, N] of several), which words it is of, and its tokens."""
    over = tokens.top if tops.ndim == 1 else tokens.top[:, None]
    fall = jnp.exp(jnp.minimum(tops - over, 0.0))  # words that do not exist have no maximum
    part = (fall * tokens.share)[:, None] if tops.ndim == 1 else fall * tokens.share[:, None]
    hit = words[None] == tokens.targets[:, None]
    return e.astype(jnp.float32) * part - jnp.where(hit, tokens.factors[:, None], 0.0)
