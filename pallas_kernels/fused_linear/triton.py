"""The kernels of fused_linear for Pallas' Triton backend: each program forms one tile of a product.

The grid is (blocks of columns, blocks of rows, splits of the sum): neighbours share the rows, which are the longer side
to read.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels._backends.triton import MatrixProduct, load, pl, store
from pallas_kernels._tiles import LinearTiles
from pallas_kernels.fused_linear import math
from pallas_kernels.fused_linear.problem import Block, Problem, load_row, load_tile, store_tile


def forward(refs: SimpleNamespace, *, problem: Problem, tiles: LinearTiles, dot: MatrixProduct) -> None:
    """Inputs: x [T, D], weight [O, D], bias [O], x_bias [D], residual [T, O]. Outputs: y [T, O]."""
    rows, columns = _place(tiles, problem.tokens, problem.outputs)

    def step(number, total):
        inner = Block.of(number, tiles.block_k, problem.features)
        a = _activated(refs, problem, rows, inner)
        return total + dot(a, load_tile(refs.weight, columns, inner).T)

    y = lax.fori_loop(0, pl.cdiv(problem.features, tiles.block_k), step, _nothing(tiles))
    if refs.bias is not None:
        y += load(refs.bias, columns.indices, columns.exist)[None]
    if refs.residual is not None:
        y += load_tile(refs.residual, rows, columns).astype(jnp.float32)
    store_tile(refs.y, rows, columns, y)


def dx(refs: SimpleNamespace, *, problem: Problem, tiles: LinearTiles, dot: MatrixProduct) -> None:
    """Inputs: dy [T, O], x, weight, x_bias. Outputs: dx [T, D]; dx_bias [blocks of T, D], a sum of each (or None)."""
    rows, columns = _place(tiles, problem.tokens, problem.features)

    def step(number, total):
        inner = Block.of(number, tiles.block_k, problem.outputs)
        return total + dot(load_tile(refs.dy, rows, inner), load_tile(refs.weight, inner, columns))

    found = lax.fori_loop(0, pl.cdiv(problem.outputs, tiles.block_k), step, _nothing(tiles))
    if problem.activation is not None:
        found = math.through(found, load_tile(refs.x, rows, columns), load_row(refs.x_bias, columns))
    store_tile(refs.dx, rows, columns, found)
    if refs.dx_bias is not None:  # of rows that do not exist every dy is 0
        store(refs.dx_bias, (pl.program_id(1), columns.indices), jnp.sum(found, axis=0), columns.exist)


def dw(refs: SimpleNamespace, *, problem: Problem, tiles: LinearTiles, dot: MatrixProduct) -> None:
    """Inputs: dy, x, x_bias. Outputs, sums over each split of the tokens: dw [S, O, D]; dbias [S, O] (or None)."""
    rows, columns = _place(tiles, problem.outputs, problem.features)
    split, each = pl.program_id(2), problem.splits(tiles)[1]
    stop = jnp.minimum((split + 1) * each, pl.cdiv(problem.tokens, tiles.block_k))

    def step(number, sums):
        total, dbias = sums
        inner = Block.of(number, tiles.block_k, problem.tokens)
        dy, a = load_tile(refs.dy, inner, rows), _activated(refs, problem, inner, columns)
        return total + dot(dy.T, a), None if dbias is None else dbias + dy.astype(jnp.float32)

    # Entry by entry, so that rows meet once, behind the loop.
    dbias = None if refs.dbias is None else jnp.zeros((tiles.block_k, tiles.block_m), jnp.float32)
    total, dbias = lax.fori_loop(split * each, stop, step, (_nothing(tiles), dbias))
    store_tile(refs.dw, rows, columns, total, split)
    if dbias is not None:  # the same in every block of columns
        mine = jnp.full((tiles.block_m,), pl.program_id(0) == 0)
        mask = mine if rows.exist is None else mine & rows.exist
        store(refs.dbias, (split, rows.indices), jnp.sum(dbias, axis=0), mask)


def _place(tiles: LinearTiles, rows: int, columns: int) -> tuple[Block, Block]:
    """The program's block of rows and of columns."""
    return Block.of(pl.program_id(1), tiles.block_m, rows), Block.of(pl.program_id(0), tiles.block_n, columns)


def _nothing(tiles: LinearTiles) -> jax.Array:
    return jnp.zeros((tiles.block_m, tiles.block_n), jnp.float32)


def _activated(refs: SimpleNamespace, problem: Problem, tokens: Block, features: Block) -> jax.Array:
    """A tile of what is multiplied with the weight."""
    return math.activated(load_tile(refs.x, tokens, features), load_row(refs.x_bias, features), problem.activation)
