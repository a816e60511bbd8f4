"""The backward of the gate: a pass over the rows of o and its cotangent, in front of the other backward kernels."""

from types import SimpleNamespace

import jax.numpy as jnp
from jax import lax

from pallas_kernels._backends.triton import load, store
from pallas_kernels._tiles import AttentionTiles
from pallas_kernels.chunked_attention.math import silu, silu_slope
from pallas_kernels.chunked_attention.problem import Cursor, Problem


def gate(refs: SimpleNamespace, *, problem: Problem, tiles: AttentionTiles) -> None:
    """Of a block of tokens: do and delta of the attention, the gradient of the gate, and its sum over the tokens.

    Inputs: before [B, L, H, V], o in front of the gate, and dg, the cotangent of what is behind it; gate [B, L, H, V];
    gate_bias [H, V] (or None).
    Outputs: do, dgate [B, L, H, V]; delta [B, H, L]; dgate_bias [B, blocks, H, V] (or None).
    """
    at = Cursor(problem, tiles.block_q)
    exists, size = at.exists(at.tokens), tiles.block_v

    def one(number, delta):
        columns = number * size + jnp.arange(size, dtype=jnp.int32)
        index, mask = at.index(at.tokens, columns, problem.width, exists)
        o, dg, opening = (load(ref, index, mask).astype(jnp.float32) for ref in (refs.before, refs.dg, refs.gate))
        opening += at.bias(refs.gate_bias, columns)
        do, dgate = (dg * silu(opening)).astype(refs.do.dtype), dg * o * silu_slope(opening)
        store(refs.do, index, do, mask)
        store(refs.dgate, index, dgate, mask)
        if refs.dgate_bias is not None:
            total = jnp.sum(dgate, axis=0)
            store(refs.dgate_bias, (at.row, at.number, at.head, columns), total, at.inside(columns))
        return delta + jnp.sum(do.astype(jnp.float32) * o, axis=1)

    slices = -(-problem.width // size)
    delta = lax.fori_loop(0, slices, one, jnp.zeros((tiles.block_q,), jnp.float32))
    store(refs.delta, (at.row, at.head, at.tokens), delta, exists)
