"""The backward kernel of TimestepNorm for Pallas' Triton backend: the walk of the forward, back in time."""

from types import SimpleNamespace

import jax.numpy as jnp
from jax import lax

from pallas_kernels._backends.triton import load, store
from pallas_kernels._tiles import Tiles
from pallas_kernels.timestep_norm import math
from pallas_kernels.timestep_norm.math import After, only
from pallas_kernels.timestep_norm.problem import Cursor, Problem


def backward(refs: SimpleNamespace, problem: Problem, tiles: Tiles, *, totals: bool) -> None:
    """Gradients of one chunk.

    Inputs: x, dy; weight, valid, runs (or None); n [B, L], or if every token counts [B], before the first (or None: 0);
    token_mean, token_var [B, G, L]; dmean, dvar [B, G] of the returned state and the token `last` [B] it belongs to
    (or None); with several chunks their total_a, total_b [B, C, G].
    Outputs: dx; dweight, dbias [B, C, D] (or None); first_a, first_b [B, C, G] (or None) at the chunk's first token;
    empty_mean, empty_var [B, C, G] (or None), the gradients of mean and variance where nothing has counted yet; in
    totals form total_a, total_b.
    """
    at = Cursor(problem, tiles, reverse=True)
    weight = at.parameter(refs.weight)
    run = jnp.int32(0) if refs.runs is None else load(refs.runs, (at.row, jnp.minimum(at.stop, problem.length - 1)))

    def load_pair(tile):
        index, mask = at.tile(*at.times(tile))
        return load(refs.x, index, mask), load(refs.dy, index, mask)

    def step(tile, carry):
        after, run, sums, empty, raw = carry
        following = load_pair(jnp.minimum(tile + 1, at.tiles - 1))
        t, exists = at.times(tile)
        x, dy = (part.astype(jnp.float32) for part in raw)
        mean, var = (load(ref, (at.row, at.group, t), exists) for ref in (refs.token_mean, refs.token_var))
        valid = None if refs.valid is None else load(refs.valid, (at.row, t), exists) > 0
        if refs.valid is None:
            n = t + 1 if refs.n is None else load(refs.n, (at.row,)) + t + 1
        else:
            n = load(refs.n, (at.row, t), exists)
        runs = None if refs.runs is None else at.runs(refs.runs, t, exists)
        deviation = x - mean[:, None]
        if problem.statistics == "all_features":  # what gives 0 has no gradient, whatever it is
            dy, deviation = only(at.spread(valid), dy), only(at.spread(valid), deviation)
        rstd = math.inverse_std(var, problem.eps, problem.statistics)
        dz = dy if weight is None else dy * (1.0 + weight)[None, :]
        dm = -rstd * jnp.sum(dz, axis=1)
        dv = -0.5 * rstd * rstd * rstd * jnp.sum(dz * deviation, axis=1)
        if refs.last is not None:
            returned = t == load(refs.last, (at.row,))
            dm += jnp.where(returned, load(refs.dmean, (at.row, at.group)), 0.0)
            dv += jnp.where(returned, load(refs.dvar, (at.row, at.group)), 0.0)
        if problem.statistics == "token_mean":
            dv = jnp.where(var < math.VARIANCE_FLOOR, 0.0, dv)
        has_next = t + 1 < problem.length
        change = only(has_next, mean - load(refs.token_mean, (at.row, at.group, t + 1), has_next))
        if runs is None:
            a, b, after = math.retreat(dm, dv, n, change, exists, after)
        else:
            a, b, after, run = _retreat_runs(dm, dv, n, change, t, runs, after, run)
        if refs.empty_mean is not None:
            nothing = n == 0 if exists is None else exists & (n == 0)
            nothing = nothing if runs is None else nothing & (runs == 0)
            empty = (empty[0] + jnp.sum(only(nothing, dm)), empty[1] + jnp.sum(only(nothing, dv)))
        if not totals:
            index, mask = at.tile(t, exists)
            store(refs.dx, index, _dx(dz * rstd[:, None], deviation, a, b, valid, at), mask)
        if refs.dweight is not None:
            sums = (sums[0] + jnp.sum(dy * deviation * rstd[:, None], axis=0), sums[1])
        if refs.dbias is not None:
            sums = (sums[0], sums[1] + jnp.sum(dy, axis=0))
        return after, run, sums, empty, following

    zero, features = jnp.float32(0.0), jnp.zeros((problem.lanes,), jnp.float32)
    after = After(zero, zero) if refs.total_a is None or totals else _start(refs, at, run)
    start = (after, run, (features, features), (zero, zero), load_pair(0))
    after, _, sums, empty, _ = lax.fori_loop(0, at.tiles, step, start)
    first = (refs.first_a, refs.first_b)
    for ref, value in zip((refs.total_a, refs.total_b) if totals else first, after, strict=True):
        if ref is not None:
            store(ref, at.cell, value)
    for ref, value in zip((refs.dweight, refs.dbias), sums, strict=True):
        if ref is not None:
            store(ref, (at.row, at.chunk, at.columns), value, at.lanes)
    for ref, value in zip((refs.empty_mean, refs.empty_var), empty, strict=True):
        if ref is not None:
            store(ref, at.cell, value)


def _start(refs: SimpleNamespace, at: Cursor, run) -> After:
    """What comes after the chunk: the chunks that begin with the document that goes on after it."""
    number, exists = at.all_chunks()
    member = exists & (number > at.chunk)
    if refs.runs is not None:
        member = member & (load(refs.runs, (at.row, number * at.chunk_length), exists) == run)
    a, b = (load(ref, (at.row, number, at.group), exists) for ref in (refs.total_a, refs.total_b))
    mean = load(refs.token_mean, (at.row, at.group, number * at.chunk_length), exists)
    near = jnp.sum(jnp.where(number == at.chunk + 1, mean, 0.0))
    return math.join_after(mean, a, b, member, near)


def _dx(own, deviation, a, b, valid, at: Cursor):
    """dz r + k/S (A + 2 (xi - mean) B), where A is about each token's own mean."""
    scale = 1.0 / at.problem.size
    if at.problem.statistics == "token_mean":
        u = jnp.sum(only(at.inside, deviation), axis=1) * scale
        return own + only(valid, (a + 2.0 * u * b) * scale)[:, None]
    return own + only(at.spread(valid), (a[:, None] + 2.0 * deviation * b[:, None]) * scale)


def _retreat_runs(dm, dv, n, change, t, runs, after: After, run):
    """Several documents, the last one first."""
    first, last = math.first_and_last(runs)

    def one(step, carry):
        after, run, a, b = carry
        number = last - step
        mine = runs == number
        goes_on = number == run  # after the tile
        after = After(*(jnp.where(goes_on, old, 0.0) for old in after))
        within = goes_on | (t != jnp.max(jnp.where(mine, t, -1)))
        new_a, new_b, after = math.retreat(dm, dv, n, only(within, change), mine, after)
        return after, number, jnp.where(mine, new_a, a), jnp.where(mine, new_b, b)

    zeros = jnp.zeros_like(dm)
    after, run, a, b = lax.fori_loop(0, last - first + 1, one, (after, run, zeros, zeros))
    return a, b, after, run
