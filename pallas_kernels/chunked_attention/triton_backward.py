"""The backward kernels: dq by blocks of queries, dk and dv by blocks of keys, each sum in one program.

Nothing is added up between programs, so that results do not depend on their order, and no scores are kept: each kernel
forms them anew. dv is split along the value dim, as o is. For dq and dk that dim is what products are summed over, and
every operand is read again for every tile of scores: large tiles save most of that, and leave the registers no room for
the sum, which stays in memory.
"""

from collections.abc import Callable
from types import SimpleNamespace

import jax.numpy as jnp

from pallas_kernels._backends.triton import load, store
from pallas_kernels._tiles import AttentionTiles
from pallas_kernels.chunked_attention.math import silu_slope, weights
from pallas_kernels.chunked_attention.problem import Cursor, Dot, Operand, Problem, Tokens, contract
from pallas_kernels.chunked_attention.sums import Sum
from pallas_kernels.chunked_attention.walks import over_keys, over_queries

Barrier = Callable[[], None]


def dq(refs: SimpleNamespace, *, problem: Problem, tiles: AttentionTiles, dot: Dot, barrier: Barrier) -> None:
    """Of a block of queries."""
    at = Cursor(problem, tiles.block_q, last_first=True)
    exists = at.exists(at.tokens)
    q = Operand(refs.q, at, at.tokens, tiles.block_d, exists).keep()
    do = Operand(refs.do, at, at.tokens, tiles.block_v, exists)
    lse, delta = (at.statistic(ref, at.tokens)[:, None] for ref in (refs.lse, refs.delta))
    total = Sum(refs.sum, at, exists, barrier)

    def step(keys, seen, counts, carry):
        dp = contract(dot, do, Operand(refs.v, at, keys, tiles.block_v, counts))
        scores = contract(dot, q, Operand(refs.k, at, keys, tiles.block_d, counts))
        ds = weights(_where(seen, scores), lse) * (dp - delta)
        total.add(dot, ds.astype(refs.k.dtype), Operand(refs.k, at, keys, total.size, counts))
        return carry

    over_keys(at, Tokens(refs.valid, refs.first), tiles, step, jnp.int32(0))
    total.write(refs.dq)


def dk(refs: SimpleNamespace, *, problem: Problem, tiles: AttentionTiles, dot: Dot, barrier: Barrier) -> None:
    """Of a block of keys."""
    at = Cursor(problem, tiles.block_k)
    exists = at.exists(at.tokens)
    counts = _counted(at, exists, refs.valid)
    k = Operand(refs.k, at, at.tokens, tiles.block_d, counts).keep()
    v = Operand(refs.v, at, at.tokens, tiles.block_v, counts)
    total = Sum(refs.sum, at, exists, barrier)

    def step(queries, seen, counts, carry):
        dp = contract(dot, v, Operand(refs.do, at, queries, tiles.block_v, counts))
        scores = contract(dot, k, Operand(refs.q, at, queries, tiles.block_d, counts))
        lse, delta = (at.statistic(ref, queries)[None] for ref in (refs.lse, refs.delta))
        ds = weights(_where(seen, scores), lse) * (dp - delta)
        total.add(dot, ds.astype(refs.q.dtype), Operand(refs.q, at, queries, total.size, counts))
        return carry

    over_queries(at, Tokens(refs.valid, refs.first, refs.end), tiles, step, jnp.int32(0))
    total.write(refs.dk)


def dv(refs: SimpleNamespace, *, problem: Problem, tiles: AttentionTiles, dot: Dot) -> None:
    """Of a block of keys and a slice of their values; gated, of what those are made of, and its sum over the keys."""
    at = Cursor(problem, tiles.block_k)
    exists, columns = at.exists(at.tokens), at.columns(tiles.block_v)
    k = Operand(refs.k, at, at.tokens, tiles.block_d, _counted(at, exists, refs.valid)).keep()

    def step(queries, seen, counts, total):
        scores = contract(dot, k, Operand(refs.q, at, queries, tiles.block_d, counts))
        p = weights(_where(seen, scores), at.statistic(refs.lse, queries)[None])
        do = load(refs.do, *at.index(queries, columns, problem.width, counts))
        return total + dot(p.astype(do.dtype), do)

    start = jnp.zeros((tiles.block_k, tiles.block_v), jnp.float32)
    total = over_queries(at, Tokens(refs.valid, refs.first, refs.end), tiles, step, start)
    index, mask = at.index(at.tokens, columns, problem.width, exists)
    if refs.raw is not None:
        counted = at.index(at.tokens, columns, problem.width, _counted(at, exists, refs.valid))
        total = total * silu_slope(load(refs.raw, *counted).astype(jnp.float32) + at.bias(refs.v_bias, columns))
    store(refs.dv, index, total, mask)
    if refs.dv_bias is not None:
        store(refs.dv_bias, (at.row, at.number, at.head, columns), jnp.sum(total, axis=0), at.inside(columns))


def _where(seen, scores):
    return scores if seen is None else jnp.where(seen, scores, -jnp.inf)


def _counted(at: Cursor, exists, valid):
    """Which of the program's own keys are to be read: those that do not count may hold anything. None for all."""
    if valid is None:
        return exists
    counts = at.each(valid, at.tokens) > 0
    return counts if exists is None else counts & exists
