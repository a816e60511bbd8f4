"""Packed documents: what `segment_ids` means, in one place.

`segment_ids[b, t]` is a non-negative integer. A *run* is a maximal stretch of equal ids along `t`; a new run
starts a new document, so an id that comes back later does not reconnect. Id 0 is padding.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int, Shaped


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


def chunk_positions(length: int, chunk_size: int, segment_ids: Int[Array, "B L"] | None) -> Int[Array, "*B L"]:
    """Position of every token inside its chunk, [L] or for packed documents [B, L]."""
    positions = jnp.arange(length, dtype=jnp.int32) if segment_ids is None else run_positions(segment_ids)
    return positions % chunk_size


def run_chunks(
    shape: tuple[int, int], chunk_size: int, segment_ids: Int[Array, "B L"] | None, before: Int[Array, " B"] | None
) -> tuple[Int[Array, "B L"], Int[Array, "B L"]]:
    """First token of the chunk of each position, and the token after its last one.

    The grid of chunks restarts at every run; in the first run it starts `before` tokens before position 0.
    """
    index = jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32), shape)
    start, end = jnp.zeros_like(index), jnp.full_like(index, shape[1])
    if segment_ids is not None:
        start, end = run_start_index(segment_ids), run_end_index(segment_ids)
    grid = start if before is None else jnp.where(start == 0, -before[:, None].astype(jnp.int32), start)
    first = grid + (index - grid) // chunk_size * chunk_size
    return jnp.maximum(first, start), jnp.minimum(first + chunk_size, end)


def cached_span(
    cached_length: Int[Array, " B"], slots: int, length: int, chunk_size: int, segment_ids: Int[Array, "B L"] | None
) -> tuple[Int[Array, " B"], Int[Array, " B"]]:
    """Tokens of the first chunk that came before position 0, and positions that belong to the same chunk."""
    before = jnp.clip(cached_length.astype(jnp.int32), 0, min(slots, chunk_size))
    _, end = run_chunks((before.shape[0], length), chunk_size, segment_ids, before)
    return before, jnp.minimum(end[:, 0], chunk_size - before)


def state_resets(segment_ids: Int[Array, "B L"]) -> Bool[Array, "B L"]:
    """Where a carried state is thrown away: every run start but the first, which continues the incoming state."""
    return run_starts(segment_ids).at[:, 0].set(False)


def valid_tokens(mask: Bool[Array, "B L"] | None, segment_ids: Int[Array, "B L"] | None) -> Bool[Array, "B L"] | None:
    """Tokens that count: `mask` True and id not 0; None when every token counts."""
    if segment_ids is None:
        return mask
    nonzero = segment_ids != 0
    return nonzero if mask is None else nonzero & mask


def take_rows(a: Shaped[Array, "B T *F"], index: Int[Array, "B S"]) -> Shaped[Array, "B S *F"]:
    """a[b, index[b, i]]"""
    return jnp.take_along_axis(a, index.reshape(*index.shape, *(1,) * (a.ndim - 2)), axis=1)


def last_valid_index(valid: Bool[Array, "B L"]) -> Int[Array, " B"]:
    """Index of the last valid token of each row, -1 for a row without one."""
    index = jnp.arange(valid.shape[1], dtype=jnp.int32)
    return jnp.max(jnp.where(valid, index, jnp.int32(-1)), axis=1)
