"""The forward kernel: for each block of queries a walk over the keys that they may attend.

Gated, it makes the values of what is loaded (where `activate` says so) and opens the gate of what it stores.

The value dim is split over programs, each of which forms the scores anew: the softmax needs them whole, the registers
do not hold all values.
"""

from functools import partial
from types import SimpleNamespace

import jax.numpy as jnp

from pallas_kernels._backends.triton import load, store
from pallas_kernels._tiles import AttentionTiles
from pallas_kernels.chunked_attention.math import finish, meet, nothing, silu
from pallas_kernels.chunked_attention.problem import Cursor, Dot, Operand, Problem, Tokens, contract
from pallas_kernels.chunked_attention.walks import over_cached, over_keys


def forward(refs: SimpleNamespace, *, problem: Problem, tiles: AttentionTiles, dot: Dot, activate: bool) -> None:
    """o, and where they are asked for lse and, before the gate, o."""
    at = Cursor(problem, tiles.block_q, last_first=True)
    exists, columns = at.exists(at.tokens), at.columns(tiles.block_v)
    q = Operand(refs.q, at, at.tokens, tiles.block_d, exists).keep()
    bias = at.bias(refs.v_bias, columns) if activate else None

    def step(k_ref, v_ref, bias, keys, seen, counts, known):
        scores = contract(dot, q, Operand(k_ref, at, keys, tiles.block_d, counts))
        known, weights = meet(known, scores if seen is None else jnp.where(seen, scores, -jnp.inf))
        v = load(v_ref, *at.index(keys, columns, problem.width, counts))
        v = v if bias is None else silu(v.astype(jnp.float32) + bias).astype(v.dtype)
        return known._replace(weighted=known.weighted + dot(weights.astype(v.dtype), v))

    known = nothing(tiles.block_q, tiles.block_v)
    marks = Tokens(refs.valid, refs.first, cached_length=refs.cached_length, reach=refs.reach)
    if marks.cached_length is not None:
        known = over_cached(at, tiles, marks, partial(step, refs.cached_k, refs.cached_v, None), known)
    o, lse = finish(over_keys(at, marks, tiles, partial(step, refs.k, refs.v, bias), known))
    index, mask = at.index(at.tokens, columns, problem.width, exists)
    if refs.gate is not None:
        if refs.before is not None:
            store(refs.before, index, o, mask)
        o = o * silu(load(refs.gate, index, mask).astype(jnp.float32) + at.bias(refs.gate_bias, columns))
    store(refs.o, index, o, mask)
    if refs.lse is not None:  # the same in every slice of values
        mine = jnp.full((tiles.block_q,), at.slice == 0)
        store(refs.lse, (at.row, at.head, at.tokens), lse, mine if exists is None else mine & exists)
