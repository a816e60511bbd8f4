"""The backward kernels: dq by blocks of queries, dk and dv by blocks of keys, each sum in one program.

Nothing is added up between programs, so that results do not depend on their order, and no scores are kept: each kernel
forms them anew. For dq and dk the value dim is what products are summed over; dv is split along it, as o is.
"""

from types import SimpleNamespace

import jax.numpy as jnp

from pallas_kernels._backends.triton import load, store
from pallas_kernels._tiles import AttentionTiles, next_power_of_two
from pallas_kernels.chunked_attention.math import weights
from pallas_kernels.chunked_attention.problem import SMALLEST, Cursor, Dot, Operand, Problem, Tokens, contract
from pallas_kernels.chunked_attention.walks import over_keys, over_queries


def dq(refs: SimpleNamespace, *, problem: Problem, tiles: AttentionTiles, dot: Dot) -> None:
    """Of a block of queries."""
    at = Cursor(problem, tiles.block_q, last_first=True)
    exists, columns = at.exists(at.tokens), _all_columns(problem)
    q = Operand(refs.q, at, at.tokens, tiles.block_d, exists).keep()
    do = Operand(refs.do, at, at.tokens, tiles.block_v, exists)
    lse, delta = (at.statistic(ref, at.tokens)[:, None] for ref in (refs.lse, refs.delta))

    def step(keys, seen, counts, total):
        dp = contract(dot, do, Operand(refs.v, at, keys, tiles.block_v, counts))
        scores = contract(dot, q, Operand(refs.k, at, keys, tiles.block_d, counts))
        ds = weights(_where(seen, scores), lse) * (dp - delta)
        k = load(refs.k, *at.index(keys, columns, problem.depth, counts))
        return total + dot(ds.astype(k.dtype), k)

    start = jnp.zeros((tiles.block_q, columns.size), jnp.float32)
    total = over_keys(at, Tokens(refs.valid, refs.first), tiles, step, start)
    index, mask = at.index(at.tokens, columns, problem.depth, exists)
    store(refs.dq, index, total, mask)


def dk(refs: SimpleNamespace, *, problem: Problem, tiles: AttentionTiles, dot: Dot) -> None:
    """Of a block of keys."""
    at = Cursor(problem, tiles.block_k)
    exists, columns = at.exists(at.tokens), _all_columns(problem)
    k = Operand(refs.k, at, at.tokens, tiles.block_d, exists).keep()
    v = Operand(refs.v, at, at.tokens, tiles.block_v, exists)

    def step(queries, seen, counts, total):
        dp = contract(dot, v, Operand(refs.do, at, queries, tiles.block_v, counts))
        scores = contract(dot, k, Operand(refs.q, at, queries, tiles.block_d, counts))
        lse, delta = (at.statistic(ref, queries)[None] for ref in (refs.lse, refs.delta))
        ds = weights(_where(seen, scores), lse) * (dp - delta)
        q = load(refs.q, *at.index(queries, columns, problem.depth, counts))
        return total + dot(ds.astype(q.dtype), q)

    start = jnp.zeros((tiles.block_k, columns.size), jnp.float32)
    total = over_queries(at, Tokens(refs.valid, refs.first, refs.end), tiles, step, start)
    index, mask = at.index(at.tokens, columns, problem.depth, exists)
    store(refs.dk, index, total, mask)


def dv(refs: SimpleNamespace, *, problem: Problem, tiles: AttentionTiles, dot: Dot) -> None:
    """Of a block of keys and a slice of their values."""
    at = Cursor(problem, tiles.block_k)
    exists, columns = at.exists(at.tokens), at.columns(tiles.block_v)
    k = Operand(refs.k, at, at.tokens, tiles.block_d, exists).keep()

    def step(queries, seen, counts, total):
        scores = contract(dot, k, Operand(refs.q, at, queries, tiles.block_d, counts))
        p = weights(_where(seen, scores), at.statistic(refs.lse, queries)[None])
        do = load(refs.do, *at.index(queries, columns, problem.width, counts))
        return total + dot(p.astype(do.dtype), do)

    start = jnp.zeros((tiles.block_k, tiles.block_v), jnp.float32)
    total = over_queries(at, Tokens(refs.valid, refs.first, refs.end), tiles, step, start)
    index, mask = at.index(at.tokens, columns, problem.width, exists)
    store(refs.dv, index, total, mask)


def _where(seen, scores):
    return scores if seen is None else jnp.where(seen, scores, -jnp.inf)


def _all_columns(problem: Problem):
    return jnp.arange(max(SMALLEST, next_power_of_two(problem.depth)), dtype=jnp.int32)
