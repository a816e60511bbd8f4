"""The kernels of fused_linear for Pallas' Triton backend: each program forms one tile of a product.

The grid is (blocks of columns, blocks of rows, splits of the sum): neighbours share the rows, which are the longer side
to read. Layers that share x stand one behind the other along the axis of their outputs.
"""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels._backends.triton import MatrixProduct, load, pl, store
from pallas_kernels._products import splits
from pallas_kernels._tiles import LinearTiles
from pallas_kernels.fused_linear import math
from pallas_kernels.fused_linear.problem import Block, Problem, load_row, load_tile, no_sums, of_layer, store_tile


def forward(refs: SimpleNamespace, *, problem: Problem, tiles: LinearTiles, dot: MatrixProduct) -> None:
    """Inputs: x, gate [T, D]; x_bias, gate_bias [D]; of each layer weight [O, D], bias [O], residual [T, O].

    Outputs: y [T, O] of each layer.
    """
    rows = Block.of(pl.program_id(1), tiles.block_m, problem.tokens)

    def one(layer: int, number) -> None:
        columns = Block.of(number, tiles.block_n, problem.outputs[layer])
        weight, bias, residual, y = of_layer(refs, layer, "weight", "bias", "residual", "y")

        def step(number, total):
            inner = Block.of(number, tiles.block_k, problem.features)
            return total + dot(_activated(refs, problem, rows, inner), load_tile(weight, columns, inner).T)

        total = lax.fori_loop(0, pl.cdiv(problem.features, tiles.block_k), step, no_sums(tiles))
        if bias is not None:
            total += load(bias, columns.indices, columns.exist)[None]
        if residual is not None:
            total += load_tile(residual, rows, columns).astype(jnp.float32)
        store_tile(y, rows, columns, total)

    _of_its_layer(problem, tiles.block_n, pl.program_id(0), one)


def dx(refs: SimpleNamespace, *, problem: Problem, tiles: LinearTiles, dot: MatrixProduct) -> None:
    """Inputs: those of the front, dy [T, O] and weight of each layer.

    Outputs: dx [T, D]; with a gate dgate and a [T, D]; sums [blocks of T, biases in front, D] (or None).
    """
    rows = Block.of(pl.program_id(1), tiles.block_m, problem.tokens)
    columns = Block.of(pl.program_id(0), tiles.block_n, problem.features)
    da = no_sums(tiles)
    for layer, outputs in enumerate(problem.outputs):
        dy, weight = of_layer(refs, layer, "dy", "weight")

        def step(number, total, outputs=outputs, dy=dy, weight=weight):
            inner = Block.of(number, tiles.block_k, outputs)
            return total + dot(load_tile(dy, rows, inner), load_tile(weight, inner, columns))

        da = lax.fori_loop(0, pl.cdiv(outputs, tiles.block_k), step, da)
    front = math.Front(None)
    if problem.activation is not None or refs.gate is not None:
        front = _front(refs, rows, columns)
    found, dgate = math.through(da, front, problem.activation)
    store_tile(refs.dx, rows, columns, found)
    if dgate is not None:
        store_tile(refs.dgate, rows, columns, dgate)
        store_tile(refs.a, rows, columns, math.activated(front, problem.activation))
    of_biases = ((found, refs.x_bias), (dgate, refs.gate_bias))
    for number, d in enumerate(d for d, bias in of_biases if d is not None and bias is not None):
        # Of rows that do not exist every dy is 0.
        store(refs.sums, (pl.program_id(1), number, columns.indices), jnp.sum(d, axis=0), columns.exist)


def dw(refs: SimpleNamespace, *, problem: Problem, tiles: LinearTiles, dot: MatrixProduct) -> None:
    """Inputs: x (with a gate a), x_bias; dy of each layer.

    Outputs, sums over each split of the tokens: of each layer dw [S, O, D] and dbias [S, O] (or None).
    """
    columns = Block.of(pl.program_id(0), tiles.block_n, problem.features)
    split, each, in_front = pl.program_id(2), splits(problem.tokens, tiles)[1], pl.program_id(0) == 0
    stop = jnp.minimum((split + 1) * each, pl.cdiv(problem.tokens, tiles.block_k))

    def one(layer: int, number) -> None:
        rows = Block.of(number, tiles.block_m, problem.outputs[layer])
        dy, into, of_bias = of_layer(refs, layer, "dy", "dw", "dbias")

        def step(number, sums):
            total, dbias = sums
            inner = Block.of(number, tiles.block_k, problem.tokens)
            part, a = load_tile(dy, inner, rows), _activated(refs, problem, inner, columns)
            return total + dot(part.T, a), None if dbias is None else dbias + part.astype(jnp.float32)

        # Entry by entry, so that rows meet once, behind the loop.
        start = None if of_bias is None else jnp.zeros((tiles.block_k, tiles.block_m), jnp.float32)
        total, dbias = lax.fori_loop(split * each, stop, step, (no_sums(tiles), start))
        store_tile(into, rows, columns, total, split)
        if dbias is not None:  # the same for every block of columns
            mine = jnp.full((tiles.block_m,), in_front)
            mask = mine if rows.exist is None else mine & rows.exist
            store(of_bias, (split, rows.indices), jnp.sum(dbias, axis=0), mask)

    _of_its_layer(problem, tiles.block_m, pl.program_id(1), one)


def _of_its_layer(problem: Problem, block: int, program, one: Callable[[int, jax.Array], None]) -> None:
    """one(layer, number of the block of its outputs), of the layer that the program stands in."""
    counts = problem.blocks(block)
    if len(counts) == 1:
        one(0, program)
        return
    first = 0
    for layer, count in enumerate(counts):
        pl.when((program >= first) & (program < first + count))(partial(one, layer, program - first))
        first += count


def _front(refs: SimpleNamespace, tokens: Block, features: Block) -> math.Front:
    return math.Front(
        load_tile(refs.x, tokens, features),
        load_row(refs.x_bias, features),
        None if refs.gate is None else load_tile(refs.gate, tokens, features),
        load_row(refs.gate_bias, features),
    )


def _activated(refs: SimpleNamespace, problem: Problem, tokens: Block, features: Block) -> jax.Array:
    """A tile of what is multiplied with the weights."""
    return math.activated(_front(refs, tokens, features), problem.activation)
