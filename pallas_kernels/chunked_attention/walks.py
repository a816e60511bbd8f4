"""Which tiles of scores a program walks over: every key that its queries may attend, or every query of its keys.

A query attends the keys of its chunk up to itself. Chunks lie one after the other, so the keys of a block of queries
begin with the chunk of its first one, and the queries of a block of keys end with the chunk of its last one. In
between are tiles in which every pair counts, walked without a mask (but for keys that do not count anywhere).
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax

from pallas_kernels._backends.triton import load
from pallas_kernels._tiles import AttentionTiles
from pallas_kernels.chunked_attention.problem import Cursor, Tokens

Step = Callable[..., Any]


def over_keys(at: Cursor, marks: Tokens, tiles: AttentionTiles, step: Step, carry):
    """For the block of queries `at`, call step(keys, seen, counts, carry) for each block of keys.

    `seen` [Q, K] is True where a query may attend a key, None where all may all; `counts` [K] on keys that are to be
    read, None for all.
    """
    chunks, block = at.chunk_of(at.tokens, marks), tiles.block_k

    def one(number, carry, masked: bool):
        keys = number * block + jnp.arange(block, dtype=jnp.int32)
        seen, counts = None, at.exists(keys) if masked else None  # before the diagonal every key exists
        if masked:
            seen = (keys[None] <= at.tokens[:, None]) & (keys[None] >= chunks[:, None])
        if marks.valid is not None:
            counts = at.each(marks.valid, keys) > 0
            seen = jnp.broadcast_to(counts[None], (at.block, block)) if seen is None else seen & counts[None]
        return step(keys, seen, counts, carry)

    begin, end = at.chunk_of(at.start, marks) // block, at.last // block + 1
    free = -(-at.chunk_of(at.last, marks) // block)
    diagonal = jnp.maximum(free, (at.start + 1) // block)
    if not _on_grid(at, marks, tiles):
        carry = lax.fori_loop(begin, free, lambda number, carry: one(number, carry, True), carry)
    carry = lax.fori_loop(free, diagonal, lambda number, carry: one(number, carry, False), carry)
    return lax.fori_loop(diagonal, end, lambda number, carry: one(number, carry, True), carry)


def over_cached(at: Cursor, tiles: AttentionTiles, marks: Tokens, step: Step, carry):
    """The same for each block of cached keys, which only the queries before `reach` see."""
    length, reach = (load(ref, (at.row,)) for ref in (marks.cached_length, marks.reach))

    def one(number, carry):
        keys = number * tiles.block_k + jnp.arange(tiles.block_k, dtype=jnp.int32)
        counts = keys < length
        return step(keys, counts[None] & (at.tokens < reach)[:, None], counts, carry)

    blocks = jnp.where(at.start < reach, (length + tiles.block_k - 1) // tiles.block_k, 0)
    return lax.fori_loop(0, blocks, one, carry)


def over_queries(at: Cursor, marks: Tokens, tiles: AttentionTiles, step: Step, carry):
    """For the block of keys `at`, call step(queries, seen, counts, carry) for each block of queries: `seen` [K, Q]."""
    valid = None if marks.valid is None else at.each(marks.valid, at.tokens)[:, None] > 0
    block = tiles.block_q

    def one(number, carry, masked: bool):
        queries = number * block + jnp.arange(block, dtype=jnp.int32)
        seen, counts = None, at.exists(queries) if masked else None
        if masked:
            chunks = at.chunk_of(queries, marks)
            seen = (at.tokens[:, None] <= queries[None]) & (at.tokens[:, None] >= chunks[None])
        if valid is not None:
            seen = jnp.broadcast_to(valid, (at.block, block)) if seen is None else seen & valid
        return step(queries, seen, counts, carry)

    last = at.start + at.block - 1
    begin, end = at.start // block, -(-at.end_of(at.last, marks) // block)
    diagonal = jnp.minimum((last + block - 1) // block, end)
    free = jnp.maximum(diagonal, at.end_of(at.start, marks) // block)
    carry = lax.fori_loop(begin, diagonal, lambda number, carry: one(number, carry, True), carry)
    carry = lax.fori_loop(diagonal, free, lambda number, carry: one(number, carry, False), carry)
    if _on_grid(at, marks, tiles) and at.problem.length % block == 0:
        return carry
    return lax.fori_loop(free, end, lambda number, carry: one(number, carry, True), carry)


def _on_grid(at: Cursor, marks: Tokens, tiles: AttentionTiles) -> bool:
    """Whether no chunk begins inside a tile."""
    chunk = at.problem.chunk_size
    return marks.first is None and chunk % tiles.block_q == 0 and chunk % tiles.block_k == 0
