"""The kernels of feature_norm for Pallas' Triton backend: each reads x once and holds all features of its tokens."""

from types import SimpleNamespace

import jax.numpy as jnp
from jax import lax

from pallas_kernels._tiles import Tiles
from pallas_kernels.feature_norm import math
from pallas_kernels.feature_norm.problem import Cursor, Problem


def forward(refs: SimpleNamespace, problem: Problem, tiles: Tiles) -> None:
    """Inputs: x [T, D]; weight, bias [D] (each may be None).

    Outputs: y [T, D].
    """
    at = Cursor(problem, tiles)
    gain, bias = _gain(refs, at), at.parameter(refs.bias)

    def step(tile, carry):
        n, _ = _normalized(refs, at, tile)
        at.store(refs.y, tile, math.affine(n, gain, bias))
        return carry

    lax.fori_loop(0, at.tiles, step, jnp.int32(0))


def backward(refs: SimpleNamespace, problem: Problem, tiles: Tiles) -> None:
    """Inputs: x, dy [T, D]; weight [D] (or None).

    Outputs: dx [T, D]; dweight, dbias [C, D] of the tokens of a chunk (each may be None).
    """
    at = Cursor(problem, tiles)
    gain = _gain(refs, at)
    wanted = [ref for ref in (refs.dweight, refs.dbias) if ref is not None]

    def step(tile, sums):
        n, r = _normalized(refs, at, tile)
        dy = at.load(refs.dy, tile)
        dn = math.affine(dy, gain, None)
        at.store(refs.dx, tile, math.dx_of(n, dn, r, problem.features, centred=problem.centred))
        parts = [part for ref, part in ((refs.dweight, dy * n), (refs.dbias, dy)) if ref is not None]
        return tuple(total + part for total, part in zip(sums, parts, strict=True))

    # Tiles are added up entry by entry, so that threads meet once, at the end.
    sums = lax.fori_loop(0, at.tiles, step, tuple(jnp.zeros(at.shape, jnp.float32) for _ in wanted))
    for ref, total in zip(wanted, sums, strict=True):
        at.store_sum(ref, jnp.sum(total, axis=0))


def _normalized(refs: SimpleNamespace, at: Cursor, tile):
    problem = at.problem
    x = at.load(refs.x, tile)
    return math.normalized(x, problem.features, at.inside, centred=problem.centred, eps=problem.eps)


def _gain(refs: SimpleNamespace, at: Cursor):
    weight = at.parameter(refs.weight)
    return None if weight is None else math.gain_of(weight, at.problem.minus_one)
