r"""Cumulative group normalisation over time, pure jnp (Megalodon, arXiv 2404.08801, section 3.2).

Features are split into G contiguous groups. Every valid token contributes one observation per group, a triple
(count 1, mean u, sum of squared deviations s); the statistics at position t merge all observations up to and
including t with the incoming state (count n0, mean m0, variance v0):

    u[t] = mean of the group's features at t
    token_mean    s[t] = 0                                     prior M2 = max(n0, 1) v0,  var floored at 1e-6
    all_features  s[t] = mean of (x[t] - u[t])^2 in the group   prior M2 = n0 v0,          no floor

Two triples merge by Chan's rule (Chan, Golub, LeVeque 1979), with d = mean_b - mean_a:

    n = na + nb        mean = mean_a + d nb / n        M2 = M2a + M2b + d^2 na nb / n

and then var = M2 / max(n, 1) (v0 while n = 0), y = (x - mean) rsqrt(var + eps) (1 + weight) + bias. The rule adds
non-negative terms only: no sum of squares minus squared mean, hence no cancellation at a large mean.

The merge is associative and runs as a prefix scan of two levels: step by step inside all chunks at once, then over the
chunk totals. At the first token of a packed document everything to its left is replaced by the empty triple before
merging, so no bit of one document reaches another.
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Int, Int32

from reference.segments import last_valid_index, run_start_index, state_resets, valid_tokens

VARIANCE_FLOOR = 1e-6
_CHUNK = 32  # steps of the inner level of the prefix scan

Statistics = Literal["token_mean", "all_features"]
State = tuple[Int32[Array, " B"], Float32[Array, "B G"], Float32[Array, "B G"]]


@partial(jax.jit, static_argnames=("num_groups", "eps", "statistics", "return_state"))
def timestep_norm(
    x: Float[Array, "B L D"],
    weight: Float[Array, " D"] | None = None,
    bias: Float[Array, " D"] | None = None,
    *,
    num_groups: int,
    eps: float = 1e-5,
    state: State | None = None,
    mask: Bool[Array, "B L"] | None = None,
    segment_ids: Int[Array, "B L"] | None = None,
    statistics: Statistics = "token_mean",
    return_state: bool = False,
):
    """Reference timestep_norm; arguments, shapes and meaning as in `pallas_kernels.timestep_norm`."""
    batch, length, features = x.shape
    grouped = x.astype(jnp.float32).reshape(batch, length, num_groups, -1)
    state = fresh_state(batch, num_groups) if state is None else state
    valid = valid_tokens(mask, segment_ids)
    count, mean, var = _cumulative(grouped, state, valid, segment_ids, statistics)

    if statistics == "all_features" and valid is not None:  # what gives 0 has no gradient, whatever it is
        grouped = jnp.where(valid[..., None, None], grouped, 0.0)
    y = (grouped - mean[..., None]) * lax.rsqrt(var + eps)[..., None]
    y = y.reshape(batch, length, features)
    if weight is not None:
        y = y * (1.0 + weight.astype(jnp.float32))
    if bias is not None:
        y = y + bias.astype(jnp.float32)
    if statistics == "all_features" and valid is not None:
        y = jnp.where(valid[..., None], y, 0.0)
    y = y.astype(x.dtype)
    return (y, _final_state(count, mean, var, state, valid)) if return_state else y


def fresh_state(batch: int, num_groups: int) -> State:
    """The state before the first token: count 0, mean 0, variance 1."""
    shape = (batch, num_groups)
    return jnp.zeros(batch, jnp.int32), jnp.zeros(shape, jnp.float32), jnp.ones(shape, jnp.float32)


def _cumulative(grouped, state: State, valid, segment_ids, statistics: Statistics):
    """Count [B, L] int32, mean and variance [B, L, G] of everything up to and including each position."""
    batch, length, groups, _ = grouped.shape
    seen = jnp.ones((batch, length), bool) if valid is None else valid
    resets = jnp.zeros((batch, length), bool) if segment_ids is None else state_resets(segment_ids)
    features = jnp.where(seen[..., None, None], grouped, 0.0)  # here masked values may be anything
    u = jnp.mean(features, axis=-1)
    within = jnp.mean(jnp.square(features - u[..., None]), axis=-1)
    count = seen.astype(jnp.int32)
    tokens = (
        resets[..., None],
        jnp.broadcast_to(seen.astype(jnp.float32)[..., None], u.shape),
        u,
        within if statistics == "all_features" else jnp.zeros_like(u),
    )
    restarted, n, mean, m2 = _prefix(tokens)
    count = jnp.cumsum(count, axis=1)
    if segment_ids is not None:
        start = run_start_index(segment_ids)
        before = jnp.take_along_axis(jnp.pad(count, ((0, 0), (1, 0))), start, axis=1)
        count = jnp.where(restarted[..., 0], count - before, count)

    fresh = tuple(part[:1] for part in fresh_state(1, groups))
    n0, m0, v0 = (
        jnp.where(restarted.reshape(batch, length, -1), new.reshape(1, 1, -1), old.reshape(batch, 1, -1))
        for new, old in zip(fresh, state, strict=True)
    )
    prior_n = n0.astype(jnp.float32)
    prior_m2 = (prior_n if statistics == "all_features" else jnp.maximum(prior_n, 1.0)) * v0
    _, n, mean, m2 = _merge(
        (jnp.zeros_like(restarted), prior_n, m0, prior_m2), (jnp.zeros_like(restarted), n, mean, m2)
    )
    empty = n == 0.0
    mean = jnp.where(empty, m0, mean)
    var = jnp.where(empty, v0, m2 / jnp.maximum(n, 1.0))
    if statistics == "token_mean":
        var = jnp.where(var < VARIANCE_FLOOR, VARIANCE_FLOOR, var)
    return count + n0[..., 0], mean, var


def _prefix(tokens):
    """Inclusive prefix merge over axis 1 of (reset, n, mean, m2), each [B, L, ...]."""
    batch, length = tokens[0].shape[:2]
    if length == 1:
        return tokens

    def chunks(part):  # [B, L, ...] -> [T, B, chunks, ...], padded with the empty triple
        part = jnp.pad(part, ((0, 0), (0, -length % _CHUNK), (0, 0)))
        return jnp.moveaxis(part.reshape(batch, -1, _CHUNK, part.shape[-1]), 2, 0)

    def inclusive(left: tuple, token):
        merged = _merge(left, token)
        return merged, merged

    def exclusive(left: tuple, total):
        return _merge(left, total), left

    tokens = tuple(map(chunks, tokens))
    empty = tuple(jnp.zeros_like(part[0]) for part in tokens)
    totals, inside = lax.scan(inclusive, empty, tokens)
    _, before = lax.scan(exclusive, tuple(part[:, 0] for part in empty), _swap(totals))
    merged = _merge(tuple(part[None] for part in _swap(before)), inside)
    return tuple(jnp.moveaxis(part, 0, 2).reshape(batch, -1, part.shape[-1])[:, :length] for part in merged)


def _swap(parts):
    return tuple(jnp.swapaxes(part, 0, 1) for part in parts)


def _merge(a, b):
    """Chan's rule; a document start on the right replaces the left triple by the empty one."""
    reset_a, n_a, mean_a, m2_a = a
    reset_b, n_b, mean_b, m2_b = b
    n_a, mean_a, m2_a = (jnp.where(reset_b, 0.0, part) for part in (n_a, mean_a, m2_a))
    n = n_a + n_b
    share = n_b / jnp.where(n == 0.0, 1.0, n)
    delta = mean_b - mean_a
    return (
        reset_a | reset_b,
        n,
        mean_a + delta * share,
        m2_a + m2_b + jnp.square(delta) * n_a * share,
    )


def _final_state(count, mean, var, state: State, valid) -> State:
    """State after the last valid token; the incoming one for a row that has none."""
    if valid is None:
        return count[:, -1], mean[:, -1], var[:, -1]
    last = last_valid_index(valid)
    rows = jnp.arange(count.shape[0])
    n, m, v = (part[rows, last] for part in (count, mean, var))
    none = last < 0
    return (
        jnp.where(none, state[0], n),
        jnp.where(none[:, None], state[1], m),
        jnp.where(none[:, None], state[2], v),
    )
