r"""The arithmetic of chunked attention on one tile of scores, everything float32.

    s[i, j] = q[i] . k[j]        p[i, j] = exp(s[i, j] - lse[i])        o[i] = sum_j p[i, j] v[j]

over the keys j that query i may attend, with lse[i] = log sum_j exp(s[i, j]) known at the end only. A walk over tiles
of keys keeps the largest score so far, top[i], the sum total[i] of exp(s - top) and the sum o'[i] of exp(s - top) v:

    top' = max(top, max_j s)        fade = exp(top - top')        total' = fade total + sum_j exp(s - top')
    o'   = fade o' + sum_j exp(s - top') v[j]                     at the end  o = o' / total, lse = top + log total

Scores that do not count are -inf. `top` starts at the lowest finite number, so that no difference is -inf - (-inf): a
query without a key has total = 0 and gives o = 0, lse = that number, p = 0.

Backward (FlashAttention, arXiv 2205.14135, appendix B.2), with delta[i] = do[i] . o[i] = sum_j p[i, j] dp[i, j]:

    dp[i, j] = do[i] . v[j]          ds = p (dp - delta)
    dq[i] = sum_j ds[i, j] k[j]      dk[j] = sum_i ds[i, j] q[i]      dv[j] = sum_i p[i, j] do[i]

Gated, v stands for silu(v' + b) and the result is g = o silu(r + c), with silu(x) = x sigmoid(x):

    do = dg silu(r + c)              dr = dg o silu'(r + c)           dv' = dv silu'(v' + b)
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

LOG2_E = 1.4426950408889634
LOWEST = float(np.finfo(np.float32).min)

Rows = Float32[Array, " Q"]
Scores = Float32[Array, "Q K"]


class Softmax(NamedTuple):
    """What is known of some queries after part of their keys; `weighted` is o'."""

    top: Rows
    total: Rows
    weighted: Float32[Array, "Q V"]


def nothing(queries: int, values: int) -> Softmax:
    """Before the first key."""
    zero = jnp.zeros((queries,), jnp.float32)
    return Softmax(jnp.full((queries,), LOWEST, jnp.float32), zero, jnp.zeros((queries, values), jnp.float32))


def meet(known: Softmax, scores: Scores) -> tuple[Softmax, Scores]:
    """With the scores of some more keys; `weighted` still without their values, which take the weights returned."""
    top = jnp.maximum(known.top, jnp.max(scores, axis=1))
    fade = jnp.exp2((known.top - top) * LOG2_E)
    weights = jnp.exp2((scores - top[:, None]) * LOG2_E)
    return Softmax(top, known.total * fade + jnp.sum(weights, axis=1), known.weighted * fade[:, None]), weights


def finish(known: Softmax) -> tuple[Float32[Array, "Q V"], Rows]:
    """(o, lse)."""
    total = jnp.where(known.total == 0.0, 1.0, known.total)
    return known.weighted / total[:, None], known.top + jnp.log2(total) / LOG2_E


def silu(x: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """x sigmoid(x)."""
    return x / (1.0 + jnp.exp2(-LOG2_E * x))


def silu_slope(x: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Its derivative."""
    share = 1.0 / (1.0 + jnp.exp2(-LOG2_E * x))
    return share * (1.0 + x * (1.0 - share))


def weights(scores: Scores, lse: Float32[Array, "..."]) -> Scores:
    """p, once lse is known; lse of shape [Q, 1], or [1, Q] for scores [K, Q]."""
    return jnp.exp2((scores - lse) * LOG2_E)
