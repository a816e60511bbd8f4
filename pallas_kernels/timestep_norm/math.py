r"""The arithmetic of TimestepNorm on one tile: T consecutive tokens of one feature group, everything float32.

The equations are those of `reference/timestep_norm.py`; here they run tile by tile. With S the group size, x[t, j] the
features of the group, k[t] in {0, 1} the tokens that count and (n0, mean0, M2_0) the statistics before the tile:

    n[t]    = n0 + sum_{s<=t} k[s]
    mean[t] = c + (n0 (mean0 - c) + sum_{s<=t} k[s] (u[s] - c)) / n[t]                u[t] = mean_j x[t, j]
    M2[t]   = M2_0 + sum_{s<=t} k[s] ((u[s] - mean[s-1])^2 (n[s] - 1) / n[s] + within[s])
    var[t]  = M2[t] / max(n[t], 1)                          y[t] = (x[t] - mean[t]) rsqrt(max(var, floor) + eps)

The shift c is mean0, or u at the first token that counts if n0 = 0, cut to a few bits: the sums stay small and x - c is
exact. M2 adds non-negative terms only. So nothing cancels at a large mean, and no token depends on a later one. M2_0
holds the prior: max(n0, 1) v0 under "token_mean", n0 v0 under "all_features". within[t] = mean_j (x[t, j] - u[t])^2;
under "token_mean" it is 0.

Backward, with r[t] = rsqrt(max(var, floor) + eps), d = x - mean and dz = dy (1 + weight):

    dm[t] = -r sum_j dz        dv[t] = -r^3/2 sum_j dz d          (+ cotangents of the returned state)
    B[t]  = sum_{s>=t} dv[s] / n[s]
    A[t]  = sum_{s>=t} (dm[s] + 2 (mean[t] - mean[s]) dv[s]) / n[s]
          = A[t+1] + 2 (mean[t] - mean[t+1]) B[t+1] + dm[t] / n[t]
    dx[t, j] = dz r + k[t]/S (A[t] + 2 (xi - mean[t]) B[t]),      xi = u[t] or, under "all_features", x[t, j]

A is about each token's own mean: only differences of neighbouring means enter, and nothing cancels when the mean jumps.
The sums run back in time: a tile of the backward holds its tokens last to first.

Chunks of a sequence that are walked side by side start from the totals of the others, each walked with nothing before
it: for the forward n, mean and M2 of the chunks before,

    n = sum n'        mean = sum n' mean' / n        M2 = sum M2' + n' (mean' - mean)^2

and for the backward A and B of the chunks after, A = sum A' + 2 (mean - mean') B'.

Documents: a tile that holds several runs is walked run by run, with the terms of the other runs replaced by 0 before
they are summed. No prefix is ever subtracted, so no bit of one document reaches another.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float32, Int32

from reference.timestep_norm import VARIANCE_FLOOR

Scalar = Float32[Array, ""]
Tokens = Float32[Array, " T"]
Tile = Float32[Array, "T S"]
Mask = Bool[Array, " T"]
Lanes = Bool[Array, "T S"]


class Before(NamedTuple):
    """Statistics of everything before a tile, within the document: count, mean, M2 with the prior."""

    n: Int32[Array, ""]
    mean: Scalar
    m2: Scalar


class Statistics(NamedTuple):
    """Statistics at each token. The mean is shift + centre, kept apart because x - shift is nearly exact."""

    shift: Tokens
    centre: Tokens
    var: Tokens


class After(NamedTuple):
    """The sums A and B at the token after a tile, if it is of the same document, else 0."""

    a: Scalar
    b: Scalar


def fresh(statistics: str) -> Before:
    """What a document starts from: the prior variance 1 counts once, or not at all."""
    return Before(jnp.int32(0), jnp.float32(0.0), jnp.float32(statistics == "token_mean"))


def inverse_std(var: Float32[Array, "..."], eps: float, statistics: str) -> Float32[Array, "..."]:
    """rsqrt(var + eps), with the variance floored under "token_mean"."""
    return lax.rsqrt((jnp.maximum(var, VARIANCE_FLOOR) if statistics == "token_mean" else var) + eps)


def only(mask, value):
    """`value` where the mask is True, else 0; everywhere if there is no mask."""
    return value if mask is None else jnp.where(mask, value, jnp.zeros_like(value))


def _as_float(count: Int32[Array, "..."]) -> Float32[Array, "..."]:
    return jnp.maximum(count, 1).astype(jnp.float32)


def _few_bits(value: Scalar) -> Scalar:
    """The value cut to 8 significant bits, so that subtracting it from x is exact: a rounding would be the same for all
    x of one binade, and bias the mean."""
    return lax.bitcast_convert_type(lax.bitcast_convert_type(value, jnp.int32) & jnp.int32(-(2**16)), jnp.float32)


def advance(
    x: Tile,
    inside: Lanes | None,
    valid: Mask | None,
    counts: Int32[Array, " T"],
    seen: Int32[Array, ""],
    before: Before,
    size: int,
    statistics: str,
) -> tuple[Statistics, Before]:
    """Statistics at each token of one document in a tile, and after its last one.

    Args:
        x: the tile.
        inside: features of the group, None if all lanes are.
        valid: tokens of this document that count, None if all are.
        counts: how many of them up to and including each token.
        seen: how many in all.
        before: what came before.
        size: S, features of the group.
        statistics: "token_mean" or "all_features".
    """
    token_mean = lambda tile: only(valid, jnp.sum(only(inside, tile), axis=1) * (1.0 / size))  # noqa: E731
    # Of the first token that counts alone: no token may depend on a later one, be it by a rounding.
    opening = counts == 1 if valid is None else valid & (counts == 1)
    first = lambda: jnp.sum(only(opening, token_mean(x)))  # noqa: E731
    shift = _few_bits(lax.cond(before.n > 0, lambda: before.mean, first))
    deviation = x - shift
    u = token_mean(deviation)

    n = before.n + counts
    own = jnp.where(before.n > 0, before.n.astype(jnp.float32) * (before.mean - shift), 0.0)
    inverse, total = 1.0 / _as_float(n), own + jnp.cumsum(u)
    mean_before = (total - u) / _as_float(n - 1)
    growth = jnp.square(u - mean_before) * (1.0 - inverse)
    if statistics == "all_features":
        growth = growth + token_mean(jnp.square(deviation - u[:, None]))
    growth = only(valid, growth)
    var = (before.m2 + jnp.cumsum(growth)) * inverse

    # Before the first token that counts the mean is the incoming one; then the incoming one is forgotten if n0 = 0.
    centre = jnp.where(n > 0, total * inverse, before.mean - shift)
    count = before.n + seen
    mean = jnp.where(count > 0, shift + (own + jnp.sum(u)) / _as_float(count), before.mean)
    return Statistics(jnp.full_like(u, shift), centre, var), Before(count, mean, before.m2 + jnp.sum(growth))


def retreat(
    dm: Tokens, dv: Tokens, n: Int32[Array, " T"], change: Tokens, here: Mask | None, after: After
) -> tuple[Tokens, Tokens, After]:
    """A and B at each token of one document in a tile held last to first; and at its first token.

    Args:
        dm: gradient of the mean at each token.
        dv: gradient of the variance at each token.
        n: count at each token.
        change: mean at each token minus that at the next one in time, 0 at the document's last.
        here: tokens of this document, None if all are.
        after: what came after.
    """
    counted = n > 0 if here is None else here & (n > 0)
    inverse = 1.0 / _as_float(n)
    b = only(counted, dv * inverse)
    b_sum = after.b + jnp.cumsum(b)
    a = only(counted, dm * inverse) + only(here, 2.0 * change * (b_sum - b))
    return after.a + jnp.cumsum(a), b_sum, After(after.a + jnp.sum(a), after.b + jnp.sum(b))


def join_before(
    counts: Int32[Array, " C"], mean: Tokens, m2: Tokens, member: Mask, near: Scalar, state: Before
) -> Before:
    """Merge the incoming state with the totals of the member chunks; `near` is any value close to their means."""
    n = jnp.where(member, counts, 0)
    count = state.n + jnp.sum(n)
    weight, prior = n.astype(jnp.float32), state.n.astype(jnp.float32)
    counted = n > 0
    shift = prior * (state.mean - near) + jnp.sum(weight * only(counted, mean - near))
    joined = jnp.where(count > 0, near + shift / _as_float(count), state.mean)
    spread = prior * jnp.square(state.mean - joined) + jnp.sum(weight * only(counted, jnp.square(mean - joined)))
    return Before(count, joined, state.m2 + jnp.sum(only(member, m2)) + spread)


def join_after(mean: Tokens, a: Tokens, b: Tokens, member: Mask, near: Scalar) -> After:
    """Merge the totals of the member chunks, with the means at their first tokens, about the mean `near`."""
    return After(jnp.sum(only(member, a + 2.0 * (near - mean) * b)), jnp.sum(only(member, b)))


def first_and_last(runs: Int32[Array, " T"]) -> tuple[Int32[Array, ""], Int32[Array, ""]]:
    """The least and the greatest document number in a tile; -1 stands for no token."""
    return jnp.min(jnp.where(runs < 0, jnp.int32(2**31 - 1), runs)), jnp.max(runs)
