"""Packed documents: what `segment_ids` means, in one place.

`segment_ids[b, t]` is a non-negative integer. A *run* is a maximal stretch of equal ids along `t`; a new run
starts a new document, so an id that comes back later does not reconnect. Id 0 is padding.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int


def run_starts(segment_ids: Int[Array, "B L"]) -> Bool[Array, "B L"]:
    """True at the first position of every run, position 0 included."""
    changed = segment_ids[:, 1:] != segment_ids[:, :-1]
    first = jnp.ones_like(segment_ids[:, :1], dtype=bool)
    return jnp.concatenate([first, changed], axis=1)


def run_start_index(segment_ids: Int[Array, "B L"]) -> Int[Array, "B L"]:
    """Position at which the run of each position starts."""
    index = jnp.arange(segment_ids.shape[1], dtype=jnp.int32)
    return lax.cummax(jnp.where(run_starts(segment_ids), index, jnp.int32(0)), axis=1)


def run_end_index(segment_ids: Int[Array, "B L"]) -> Int[Array, "B L"]:
    """Position after the last one of the run of each position."""
    length = segment_ids.shape[1]
    after = jnp.arange(1, length + 1, dtype=jnp.int32)
    ends = jnp.roll(run_starts(segment_ids), -1, axis=1)  # position 0 is a start, so the last one is an end
    return lax.cummin(jnp.where(ends, after, jnp.int32(length)), axis=1, reverse=True)


def run_positions(segment_ids: Int[Array, "B L"]) -> Int[Array, "B L"]:
    """Position of every token inside its own run: 0, 1, 2, ..."""
    index = jnp.arange(segment_ids.shape[1], dtype=jnp.int32)
    return index - run_start_index(segment_ids)


def state_resets(segment_ids: Int[Array, "B L"]) -> Bool[Array, "B L"]:
    """Where a carried state is thrown away: every run start but the first, which continues the incoming state."""
    return run_starts(segment_ids).at[:, 0].set(False)


def valid_tokens(mask: Bool[Array, "B L"] | None, segment_ids: Int[Array, "B L"] | None) -> Bool[Array, "B L"] | None:
    """Tokens that count: `mask` True and id not 0; None when every token counts."""
    if segment_ids is None:
        return mask
    nonzero = segment_ids != 0
    return nonzero if mask is None else nonzero & mask


def last_valid_index(valid: Bool[Array, "B L"]) -> Int[Array, " B"]:
    """Index of the last valid token of each row, -1 for a row without one."""
    index = jnp.arange(valid.shape[1], dtype=jnp.int32)
    return jnp.max(jnp.where(valid, index, jnp.int32(-1)), axis=1)
