"""The kernels of normalized_rotary for Pallas' Triton backend: each reads z once."""

from types import SimpleNamespace

import jax.numpy as jnp
from jax import lax

from pallas_kernels._backends.triton import load
from pallas_kernels._tiles import Tiles
from pallas_kernels.normalized_rotary import math
from pallas_kernels.normalized_rotary.math import Pair, Turn
from pallas_kernels.normalized_rotary.problem import Cursor, Problem


def forward(refs: SimpleNamespace, problem: Problem, tiles: Tiles) -> None:
    """Inputs: z; scale, shift [2, H, K]; bias [H, K] (or None); positions [1 or B, L]; of_digits [4, K/2].

    Outputs: q, k.
    """
    at = Cursor(problem, tiles)
    factors, shifts = at.factors(refs.scale), at.parameters(refs.shift)
    bias = None if refs.bias is None else at.bias(refs.bias)

    def step(tile, carry):
        t, exists = at.tokens(tile)
        turn, z = _turn(refs, at, t, exists), _projection(refs, at, t, exists, bias)
        n = math.scaled(z, math.inverse_rms(z, problem.depth, problem.eps))
        for ref, factor, shift in zip((refs.q, refs.k), factors, shifts, strict=True):
            at.store(ref, t, exists, math.turned(math.affine(n, factor, shift), turn))
        return carry

    lax.fori_loop(0, at.tiles, step, jnp.int32(0))


def backward(refs: SimpleNamespace, problem: Problem, tiles: Tiles) -> None:
    """Inputs: those of the forward, dq, dk.

    Outputs: dz; over the chunk dscale, dshift [B, C, 2, H, K] and dbias [B, C, H, K] (or None).
    """
    at = Cursor(problem, tiles)
    factors = at.factors(refs.scale)
    bias = None if refs.bias is None else at.bias(refs.bias)

    def step(tile, sums):
        t, exists = at.tokens(tile)
        turn, z = _turn(refs, at, t, exists), _projection(refs, at, t, exists, bias)
        r = math.inverse_rms(z, problem.depth, problem.eps)
        n = math.scaled(z, r)
        du_q, du_k = (math.turned_back(at.load(ref, t, exists), turn) for ref in (refs.dq, refs.dk))
        dus = du_q, du_k
        dz = math.dz_of(n, math.dn_of(dus, factors), r, problem.depth)
        at.store(refs.dz, t, exists, dz)
        dscale, dshift, dbias = sums
        dscale = tuple(math.add_tokens(total, math.times(du, n)) for total, du in zip(dscale, dus, strict=True))
        return dscale, tuple(map(math.add_tokens, dshift, dus)), None if bias is None else math.add_tokens(dbias, dz)

    nothing = Pair(*(jnp.zeros((at.angle.size,), jnp.float32) for _ in range(2)))
    start = ((nothing, nothing), (nothing, nothing), None if bias is None else nothing)
    dscale, dshift, dbias = lax.fori_loop(0, at.tiles, step, start)
    for which in (0, 1):
        at.store_sum(refs.dscale, math.multiple(dscale[which], problem.scale_factor), which)
        at.store_sum(refs.dshift, dshift[which], which)
    if refs.dbias is not None:
        at.store_sum(refs.dbias, dbias)


def _projection(refs: SimpleNamespace, at: Cursor, t, exists, bias: Pair | None) -> Pair:
    """A tile of z, with the bias; of rows that do not exist no output is stored, and every cotangent is 0."""
    z = at.load(refs.z, t, exists)
    return z if bias is None else math.plus(z, bias)


def _turn(refs: SimpleNamespace, at: Cursor, t, exists) -> Turn:
    row = at.row if refs.positions.shape[0] == at.problem.batch else 0
    of_digits = [load(refs.of_digits, (digit, at.angle), at.inside) for digit in range(refs.of_digits.shape[0])]
    return math.turn_of(load(refs.positions, (row, t), exists), of_digits)
