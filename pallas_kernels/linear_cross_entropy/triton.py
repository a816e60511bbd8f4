"""The kernels of linear_cross_entropy for Pallas' Triton backend: each program forms one tile of a product."""

from types import SimpleNamespace

import jax.numpy as jnp
from jax import lax

from pallas_kernels._backends.triton import MatrixProduct, pl, store
from pallas_kernels._products import splits
from pallas_kernels._tiles import LinearTiles
from pallas_kernels.fused_linear.problem import Block, load_tile, no_sums, store_tile
from pallas_kernels.linear_cross_entropy import math
from pallas_kernels.linear_cross_entropy.problem import Problem, counting, load_part, load_slope, load_tokens


def forward(refs: SimpleNamespace, *, problem: Problem, tiles: LinearTiles, dot: MatrixProduct) -> None:
    """Inputs: hidden [T, D], weight [V, D], targets, factors [T]. Outputs: e [T, V]; tops, sums [blocks of V, T]: m_b
    and s_b; picked [T]: the logits of the targets.

    The grid is (blocks of tokens, blocks of words): neighbours share words, and all of `hidden` stays in the cache.
    """
    tokens = Block.of(pl.program_id(0), tiles.block_m, problem.tokens)
    words = Block.of(pl.program_id(1), tiles.block_n, problem.vocabulary)
    rows = counting(refs, tokens)

    def step(number, total):
        inner = Block.of(number, tiles.block_k, problem.features)
        return total + dot(load_tile(refs.hidden, rows, inner), load_tile(refs.weight, words, inner).T)

    z = lax.fori_loop(0, pl.cdiv(problem.features, tiles.block_k), step, no_sums(tiles))
    e, top, total = math.exponentials(z, words.exist)
    store_tile(refs.e, tokens, words, e)
    here = (pl.program_id(1), tokens.indices)
    store(refs.tops, here, top, tokens.exist)
    store(refs.sums, here, total, tokens.exist)
    targets = load_part(refs.targets, tokens)
    picked = jnp.sum(jnp.where(words.indices[None] == targets[:, None], z, 0.0), axis=1)
    mine = targets // tiles.block_n == pl.program_id(1)
    store(refs.picked, tokens.indices, picked, mine if tokens.exist is None else mine & tokens.exist)


def dhidden(refs: SimpleNamespace, *, problem: Problem, tiles: LinearTiles, dot: MatrixProduct) -> None:
    """Inputs: e, tops, weight, factors, targets, top, share [T]. Outputs: dhidden [S, T, D], sums over each split of
    the vocabulary.

    The grid is (blocks of features, blocks of tokens, splits).
    """
    features = Block.of(pl.program_id(0), tiles.block_n, problem.features)
    tokens = Block.of(pl.program_id(1), tiles.block_m, problem.tokens)
    split, each = pl.program_id(2), splits(problem.vocabulary, tiles)[1]
    stop = jnp.minimum((split + 1) * each, pl.cdiv(problem.vocabulary, tiles.block_k))
    softmax = load_tokens(refs, tokens)

    def step(number, total):
        dz = load_slope(refs, problem, tokens, softmax, number, tiles.block_k)
        words = Block.of(number, tiles.block_k, problem.vocabulary)
        return total + dot(dz, load_tile(refs.weight, words, features))

    total = lax.fori_loop(split * each, stop, step, no_sums(tiles))
    store_tile(refs.dhidden, tokens, features, total, split)


def dweight(refs: SimpleNamespace, *, problem: Problem, tiles: LinearTiles, dot: MatrixProduct) -> None:
    """Inputs: e, tops, hidden, factors, targets, top, share, so_far [V, D] (or None). Outputs: dweight [V, D].

    The grid is (blocks of features, blocks of words): neighbours share words, of which there are more to read.
    """
    features = Block.of(pl.program_id(0), tiles.block_n, problem.features)
    block = pl.program_id(1)
    words = Block.of(block, tiles.block_m, problem.vocabulary)

    def step(number, total):
        tokens = Block.of(number, tiles.block_k, problem.tokens)
        dz = load_slope(refs, problem, tokens, load_tokens(refs, tokens), block, tiles.block_m)
        return total + dot(dz.T, load_tile(refs.hidden, counting(refs, tokens), features))

    # Wide tiles of bfloat16 leave no registers to add it behind the loop; float32 sums do not grow on top of it.
    first = refs.so_far is not None and refs.hidden.dtype == jnp.bfloat16
    start = load_tile(refs.so_far, words, features) if first else no_sums(tiles)
    total = lax.fori_loop(0, pl.cdiv(problem.tokens, tiles.block_k), step, start)
    if refs.so_far is not None and not first:
        total += load_tile(refs.so_far, words, features)
    store_tile(refs.dweight, words, features, total)
