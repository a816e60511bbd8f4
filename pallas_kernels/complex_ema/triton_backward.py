"""The backward kernel of ComplexEMA for Pallas' Triton backend: the walk of the forward, back in time."""

from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import jax.numpy as jnp

from pallas_kernels._backends.triton import load, pl, store
from pallas_kernels._tiles import Tiles
from pallas_kernels.complex_ema import math, triton_forward
from pallas_kernels.complex_ema.math import Fma
from pallas_kernels.complex_ema.problem import Cursor, Problem
from pallas_kernels.complex_ema.triton_forward import (
    State,
    add_special,
    counted,
    decays,
    reading,
    start,
    store_one,
    store_state,
    turn_back,
)
from pallas_kernels.complex_ema.walk import walk


class Sums(NamedTuple):
    """What the walk carries: m, its derivative e by q, sum x m, sum x e, and sum dy x."""

    m: State
    e: State
    xm: State
    xe: State
    dyx: math.Lanes


def backward(refs: SimpleNamespace, problem: Problem, tiles: Tiles, fma: Fma) -> None:
    """Gradients of one chunk.

    Inputs: x, dy [B, L, D] (dy or None for 0); decay_*, drift_*, read_u, read_v [N, D]; omega [D] (or None); start_u,
    start_v [B, C, N, D] (or None for 0), m coming in, and h_u, h_v [B, C, N, D] (or None for 0), the state entering the
    chunk from the other side; valid, resets [B, L], marked [B, M] (or None); a pair add_u, add_v [B, N, D] that is
    added to m at token `special` [B] (or None); opening [B, C], 1 where h is thrown away at once (or None).
    Outputs: dx; sum_u, sum_v and slope_u, slope_v [B, C, N, D], sum x m and sum x e + q h e; domega [B, C, D] (or
    None); first_u, first_v [B, N, D] (or None), m at the first token.
    """
    at = Cursor(problem, tiles, reverse=True)
    decay, c = decays(refs, at), reading(refs, at)
    omega = None if refs.omega is None else load(refs.omega, (at.columns,), at.lanes)

    def steps(sums: Sums, values, hit):
        xs = [counted(x, valid) for x, valid, _ in values]
        dys = [None if dy is None else dy.astype(jnp.float32) for *_, dy in values]
        outputs = [jnp.zeros_like(x) if omega is None else omega * dy for x, dy in zip(xs, dys, strict=True)]
        found = []
        for n, (m, e, xm, xe) in enumerate(zip(sums.m, sums.e, sums.xm, sums.xe, strict=True)):
            ms, es = [], []
            for t, dy in enumerate(dys):
                e = math.advance_slope(fma, decay[n], e, m)
                m = add_special(refs, at, hit, n, math.advance(fma, decay[n], m, dy))
                outputs[t] = math.read(fma, c[n], m, outputs[t])
                ms.append(m)
                es.append(e)
            found.append((m, e, math.add(xm, math.weigh(fma, xs, ms)), math.add(xe, math.weigh(fma, xs, es))))
        m, e, xm, xe = zip(*found, strict=True)
        dyx = sums.dyx
        if refs.domega is not None:
            dyx += sum(x * dy for x, dy in zip(xs, dys, strict=True) if dy is not None)
        return Sums(m, e, xm, xe, dyx), [counted(dx, value[1]) for dx, value in zip(outputs, values, strict=True)]

    def forget(reset, sums: Sums) -> Sums:
        return sums._replace(m=triton_forward.forget(reset, sums.m), e=triton_forward.forget(reset, sums.e))

    def both_back(due, sums: Sums) -> Sums:
        back = partial(turn_back, refs, at, fma, decay, due)
        return sums._replace(m=back(sums.m), e=back(sums.e))

    nothing = start(None, None, at)
    begin = Sums(start(refs.start_u, refs.start_v, at), nothing, nothing, nothing, jnp.zeros((at.width,), jnp.float32))
    m, e, xm, xe, dyx = walk(
        refs, at, begin,
        inputs=(refs.x, refs.valid, refs.dy), steps=steps, forget=forget, turn_back=both_back, output=refs.dx,
    )  # fmt: skip
    if refs.first_u is not None:

        @pl.when(at.chunk == 0)  # behind a branch: with masks instead, ptxas spills
        def _():
            for n, part in enumerate(m):
                store_one(refs.first_u, refs.first_v, at, True, n, part)

    if refs.h_u is not None:
        h = start(refs.h_u, refs.h_v, at)
        if refs.opening is not None:
            h = triton_forward.forget(load(refs.opening, (at.row, at.chunk)) > 0, h)
        through = [
            math.product(fma, one, math.advance(fma, one, left, None), right)
            for one, left, right in zip(decay, h, e, strict=True)
        ]
        xe = tuple(map(math.add, xe, through))
    store_state(refs.sum_u, refs.sum_v, at, xm)
    store_state(refs.slope_u, refs.slope_v, at, xe)
    if refs.domega is not None:
        store(refs.domega, (at.row, at.chunk, at.columns), dyx, at.lanes)
