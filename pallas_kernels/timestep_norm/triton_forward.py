"""The forward kernel of TimestepNorm for Pallas' Triton backend; the arithmetic is in `math.py`.

One program walks one chunk of one group of one sequence, tile by tile. With several chunks a first launch in *totals*
form computes only what each chunk passes on, and every program of the second launch joins the totals it starts from.
One chunk needs no totals: one pass over memory.

The next tile is loaded before the present one is worked on. Per-token statistics are [B, G, L], so that a program
reads and writes them contiguously.
"""

from types import SimpleNamespace

import jax.numpy as jnp
from jax import lax

from pallas_kernels._backends.triton import load, store
from pallas_kernels._tiles import Tiles
from pallas_kernels.timestep_norm import math
from pallas_kernels.timestep_norm.math import Before, Statistics, only
from pallas_kernels.timestep_norm.problem import Cursor, Problem


def forward(refs: SimpleNamespace, problem: Problem, tiles: Tiles, *, totals: bool) -> None:
    """Statistics and output of one chunk.

    Inputs: x; weight, bias, valid, runs (or None); state_n [B], state_mean, state_m2 [B, G] (or None); with several
    chunks their total_n, total_mean, total_m2 [B, C, G].
    Outputs: y, and token_mean, token_var [B, G, L] (or None); in totals form total_n, total_mean, total_m2.
    """
    at = Cursor(problem, tiles)
    weight, bias = at.parameter(refs.weight), at.parameter(refs.bias)
    run = jnp.int32(0) if refs.runs is None else load(refs.runs, (at.row, jnp.maximum(at.start - 1, 0)))

    def load_x(tile):
        index, mask = at.tile(*at.times(tile))
        return load(refs.x, index, mask)

    def step(tile, carry):
        before, run, raw = carry
        following = load_x(jnp.minimum(tile + 1, at.tiles - 1))
        t, exists = at.times(tile)
        x = raw.astype(jnp.float32)
        valid = exists if refs.valid is None else load(refs.valid, (at.row, t), exists) > 0
        if refs.runs is None:
            statistics, before = _advance(x, at, valid, refs.valid is None, tile, before)
        else:
            statistics, before, run = _advance_runs(x, at, valid, at.runs(refs.runs, t, exists), before, run)
        if not totals:
            rstd = math.inverse_std(statistics.var, problem.eps, problem.statistics)
            y = (x - statistics.shift[:, None] - statistics.centre[:, None]) * rstd[:, None]
            y = y if weight is None else y * (1.0 + weight)[None, :]
            y = y if bias is None else y + bias[None, :]
            if problem.statistics == "all_features" and refs.valid is not None:
                y = only(at.spread(valid), y)
            index, mask = at.tile(t, exists)
            store(refs.y, index, y, mask)
        if refs.token_mean is not None:
            store(refs.token_mean, (at.row, at.group, t), statistics.shift + statistics.centre, exists)
            store(refs.token_var, (at.row, at.group, t), statistics.var, exists)
        return before, run, following

    nothing = Before(jnp.int32(0), jnp.float32(0.0), jnp.float32(0.0))
    before = nothing if totals else _start(refs, at, run, nothing)
    after, _, _ = lax.fori_loop(0, at.tiles, step, (before, run, load_x(0)))
    if totals:
        for ref, value in zip((refs.total_n, refs.total_mean, refs.total_m2), after, strict=True):
            store(ref, at.cell, value)


def _start(refs: SimpleNamespace, at: Cursor, run, nothing: Before) -> Before:
    """What the chunk starts from: the incoming state if its document goes on, and the chunks of the same document."""
    state = math.fresh(at.problem.statistics)
    if refs.state_n is not None:
        group = (at.row, at.group)
        state = Before(load(refs.state_n, (at.row,)), load(refs.state_mean, group), load(refs.state_m2, group))
    if refs.total_mean is None:
        return state
    number, exists = at.all_chunks()
    member = number < at.chunk
    if refs.runs is not None:
        state = Before(*(jnp.where(run == 0, old, new) for old, new in zip(state, nothing, strict=True)))
        ends = jnp.minimum((number + 1) * at.chunk_length, at.problem.length) - 1
        member = member & (load(refs.runs, (at.row, ends), exists) == run)
    cells = (at.row, number, at.group)
    n, mean, m2 = (load(ref, cells, exists) for ref in (refs.total_n, refs.total_mean, refs.total_m2))
    near = jnp.sum(jnp.where(number == at.chunk - 1, mean, 0.0))
    return math.join_before(n, mean, m2, member, near, state)


def _advance(x, at: Cursor, valid, all_count: bool, tile, before: Before) -> tuple[Statistics, Before]:
    """One document; where every token counts, how many do is known without a sum."""
    if all_count:
        counts = 1 + jnp.arange(at.block, dtype=jnp.int32)
        seen = jnp.minimum(jnp.int32(at.block), at.stop - at.start - tile * at.block)
    else:
        counts, seen = jnp.cumsum(valid.astype(jnp.int32)), jnp.sum(valid.astype(jnp.int32))
    return math.advance(x, at.inside, valid, counts, seen, before, at.problem.size, at.problem.statistics)


def _advance_runs(x, at: Cursor, valid, runs, before: Before, run):
    """Several documents, one after the other."""
    problem = at.problem

    def one(number, carry):
        before, run, found = carry
        start = math.fresh(problem.statistics)
        before = Before(*(jnp.where(number == run, old, new) for old, new in zip(before, start, strict=True)))
        mine = runs == number
        here = (mine & valid).astype(jnp.int32)
        statistics, before = math.advance(
            x, at.inside, here > 0, jnp.cumsum(here), jnp.sum(here), before, problem.size, problem.statistics
        )
        kept = (jnp.where(mine, new, old) for new, old in zip(statistics, found, strict=True))
        return before, number, Statistics(*kept)

    zeros = jnp.zeros((at.block,), jnp.float32)
    first, last = math.first_and_last(runs)
    before, run, found = lax.fori_loop(first, last + 1, one, (before, run, Statistics(zeros, zeros, zeros)))
    return found, before, run
