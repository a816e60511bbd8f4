"""The forward kernels of ComplexEMA for Pallas' Triton backend: ends of the chunks, their joining, and the outputs.

A program holds all states of 32 features per warp in registers, one feature per lane, and walks over one chunk.
"""

from functools import partial
from types import SimpleNamespace

import jax.numpy as jnp
from jax import lax

from pallas_kernels._backends.triton import load, pl, store
from pallas_kernels._tiles import Tiles
from pallas_kernels.complex_ema import math
from pallas_kernels.complex_ema.math import Decay, Fma, Number
from pallas_kernels.complex_ema.problem import Cursor, Problem
from pallas_kernels.complex_ema.walk import walk

FEW = 4
LANES_OF_JOIN = 128

State = tuple[Number, ...]


def decays(refs: SimpleNamespace, at: Cursor) -> tuple[Decay, ...]:
    """The constants of a step."""
    return tuple(Decay(*at.constants(n, refs.decay_re, refs.decay_sq)) for n in range(at.problem.states))


def reading(refs: SimpleNamespace, at: Cursor) -> State:
    """What a state is read with."""
    return tuple(Number(*at.constants(n, refs.read_u, refs.read_v)) for n in range(at.problem.states))


def forget(reset, m: State) -> State:
    """All states 0 where `reset` is True."""
    return tuple(math.forget(reset, part) for part in m)


def turn_back(refs: SimpleNamespace, at: Cursor, fma: Fma, decay: tuple[Decay, ...], due, m: State) -> State:
    """The state after STEADY steps, turned back if `due`.

    The constants are read here, a few at a time behind a branch each: registers are what limits how many programs a
    multiprocessor holds.
    """

    def few(states: range, part: State) -> State:
        drift = [Number(*at.constants(n, refs.drift_re, refs.drift_im)) for n in states]
        return tuple(math.turn_back(fma, decay[n], k, m) for n, k, m in zip(states, drift, part, strict=True))

    found = ()
    for first in range(0, len(m), FEW):
        part = m[first : first + FEW]
        states = range(first, first + len(part))
        found += lax.cond(due, partial(few, states), lambda part: part, part)
    return found


def start(u, v, at: Cursor) -> State:
    """This program's part of a pair of [B, C, N, D] arrays, 0 for None."""
    if u is None:
        return (math.zeros(at.width),) * at.problem.states
    return tuple(Number(load(u, at.cell(n), at.lanes), load(v, at.cell(n), at.lanes)) for n in range(at.problem.states))


def store_state(u, v, at: Cursor, m: State) -> None:
    """Write this program's part of a pair of [B, C, N, D] arrays."""
    for n, part in enumerate(m):
        store(u, at.cell(n), part.u, at.lanes)
        store(v, at.cell(n), part.v, at.lanes)


def store_one(u, v, at: Cursor, hit, n: int, m: Number) -> None:
    """Write one state of this program's part of a pair of [B, N, D] arrays, if `hit`."""
    for ref, part in ((u, m.u), (v, m.v)):
        store(ref, (at.row, n, at.columns), part, at.masked(hit))


def add_special(refs: SimpleNamespace, at: Cursor, hit, n: int, m: Number) -> Number:
    """m, with the pair add_u, add_v [B, N, D] added at the special step."""
    if hit is None or refs.add_u is None:
        return m
    index, mask = (at.row, n, at.columns), at.masked(hit)
    return math.add(m, Number(load(refs.add_u, index, mask), load(refs.add_v, index, mask)))


def counted(x, valid):
    """x in float32, 0 where it does not count."""
    x = x.astype(jnp.float32)
    return x if valid is None else jnp.where(valid > 0, x, 0.0)


def ends(refs: SimpleNamespace, problem: Problem, tiles: Tiles, fma: Fma, *, reverse: bool) -> None:
    """The state that a chunk ends with if nothing comes in; not of the last one of the walk, which nobody needs.

    Inputs: x [B, L, D] (or None); decay_*, drift_* [N, D]; valid, resets [B, L], marked [B, M] (or None); a pair add_u,
    add_v [B, N, D] that is added at token `special` [B] (or None).
    Outputs: end_u, end_v [B, C-1, N, D].
    """
    at = Cursor(problem, tiles, reverse=reverse, skipped=int(reverse))
    decay = decays(refs, at)

    def steps(m: State, values, hit):
        for x, valid in values:
            x = None if x is None else counted(x, valid)
            m = tuple(math.advance(fma, one, part, x) for one, part in zip(decay, m, strict=True))
            m = tuple(add_special(refs, at, hit, n, part) for n, part in enumerate(m))
        return m, [None] * len(values)

    m = walk(
        refs, at, start(None, None, at),
        inputs=(refs.x, refs.valid), steps=steps, forget=forget, turn_back=partial(turn_back, refs, at, fma, decay),
    )  # fmt: skip
    store_state(refs.end_u, refs.end_v, at, m)


def forward(refs: SimpleNamespace, problem: Problem, tiles: Tiles, fma: Fma) -> None:
    """Outputs of one chunk.

    Inputs: x [B, L, D]; decay_*, drift_*, read_u, read_v [N, D]; omega [D] (or None); start_u, start_v [B, C, N, D]
    (or None for 0); valid, resets [B, L], marked [B, M] (or None); the token `special` [B] whose state is returned (or
    None: the last).
    Outputs: y; last_u, last_v [B, N, D] (or None), that state.
    """
    at = Cursor(problem, tiles, reverse=False)
    decay, c = decays(refs, at), reading(refs, at)
    omega = None if refs.omega is None else load(refs.omega, (at.columns,), at.lanes)

    def keep(hit, n: int, m: Number) -> None:
        if refs.last_u is not None and hit is not None:
            store_one(refs.last_u, refs.last_v, at, hit, n, m)

    def steps(m: State, values, hit):
        outputs = []
        for x, valid in values:
            x = counted(x, valid)
            m = tuple(math.advance(fma, one, part, x) for one, part in zip(decay, m, strict=True))
            y = jnp.zeros_like(x) if omega is None else omega * x
            for n, part in enumerate(m):
                keep(hit, n, part)
                y = math.read(fma, c[n], part, y)
            outputs.append(y)
        return m, outputs

    m = walk(
        refs, at, start(refs.start_u, refs.start_v, at),
        inputs=(refs.x, refs.valid), steps=steps, forget=forget, turn_back=partial(turn_back, refs, at, fma, decay),
        output=refs.y,
    )  # fmt: skip
    if refs.special is None:
        for n, part in enumerate(m):
            keep(at.stop == problem.length, n, part)


def join(refs: SimpleNamespace, problem: Problem, tiles: Tiles, fma: Fma, *, reverse: bool) -> None:
    """The states entering all chunks, from their ends: one program per row and block of states x features.

    Inputs: end_u, end_v [B, C-1, E], E = N D; the power of q, [E] each; first_u, first_v [B, E], the state entering the
    first chunk (or None for 0); broken [B, C], 1 where a chunk throws away what comes in (or None).
    Outputs: start_u, start_v [B, C, E].
    """
    chunks, _ = problem.chunks(tiles)
    width, size = LANES_OF_JOIN, problem.states * problem.features
    row = pl.program_id(1)
    columns = pl.program_id(0) * width + jnp.arange(width, dtype=jnp.int32)
    lanes = None if size % width == 0 else columns < size
    constants = (refs.a, refs.u_from_v, refs.v_from_u, refs.a_rest, refs.u_from_v_rest, refs.v_from_u_rest)
    a, f, g, a_rest, f_rest, g_rest = (load(ref, (columns,), lanes) for ref in constants)

    def chunk(number):
        return chunks - 1 - number if reverse else number

    def put(number, m):
        store(refs.start_u, (row, chunk(number), columns), m[0], lanes)
        store(refs.start_v, (row, chunk(number), columns), m[1], lanes)

    def step(number, m):
        put(number, m)
        end = (row, chunk(number) - int(reverse), columns)
        u, v = m
        if refs.broken is not None:
            gone = load(refs.broken, (row, chunk(number))) > 0
            u, v = (jnp.where(gone, 0.0, part) for part in m)
        new_u = fma(a, u, fma(f, v, fma(a_rest, u, fma(f_rest, v, load(refs.end_u, end, lanes)))))
        new_v = fma(a, v, fma(g, u, fma(a_rest, v, fma(g_rest, u, load(refs.end_v, end, lanes)))))
        return new_u, new_v

    zero = jnp.zeros((width,), jnp.float32)
    first = (zero if ref is None else load(ref, (row, columns), lanes) for ref in (refs.first_u, refs.first_v))
    put(chunks - 1, lax.fori_loop(0, chunks - 1, step, tuple(first)))
