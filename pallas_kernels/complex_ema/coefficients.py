"""The constants of a call, from p, q and gamma: once per call, in float64 where float32 is too coarse.

All arrays are [N, D] float32, so that a program reads the features of one state side by side.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex64, Float32

from pallas_kernels.complex_ema.math import STEADY, TINY

States = Float32[Array, "N D"]


class Walk(NamedTuple):
    """What a walk over time needs: Re q and -s^2; Re k and Im k / s."""

    decay_re: States
    decay_sq: States
    drift_re: States
    drift_im: States


class Power(NamedTuple):
    """q^T on pairs: a, -b s, b / s, and what float32 leaves out of them."""

    a: States
    u_from_v: States
    v_from_u: States
    a_rest: States
    u_from_v_rest: States
    v_from_u_rest: States


class Coefficients(NamedTuple):
    """`scale` is s, the unit of v; `halfway` is 1 + k / 2, what is read between two turns of the state times."""

    walk: Walk
    power: Power
    scale: States
    halfway: Complex64[Array, "N D"]


def away_from_zero(value: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """The value, raised to TINY in magnitude: something that may be divided by."""
    return jnp.where(jnp.abs(value) < TINY, jnp.where(value < 0, -TINY, TINY), value)


def coefficients(q: Complex64[Array, "D N"], chunk: int, *, divided_by: bool) -> Coefficients:
    """Constants of q, for chunks of `chunk` steps; `divided_by`: is Im q to be kept away from 0?"""
    re, im = jnp.real(q).T, jnp.imag(q).T
    if divided_by:
        im = away_from_zero(im)
    with jax.enable_x64(True):
        re, im = re.astype(jnp.float64), im.astype(jnp.float64)
        sq = jnp.square(im).astype(jnp.float32)
        root = jnp.sqrt(sq.astype(jnp.float64))
        scale = jnp.where(im < 0, -root, root)  # jnp.copysign fails on a folded, transposed constant
        straight = jnp.abs(im) < TINY  # does not turn within any memory
        turn = jnp.where(straight, 0.0, im - scale) * _steps_since(re * re + scale * scale)
        walk = (re, -sq, turn * scale, turn * re / jnp.where(straight, 1.0, scale))
        ratio = jnp.where(scale == 0.0, 1.0, im / jnp.where(scale == 0.0, 1.0, scale))
        a, b = _power(re, im, chunk)
        power = (a, -b * im * scale, b * ratio)
        halves = [part.astype(jnp.float32) for part in power]
        rests = [part - half.astype(jnp.float64) for part, half in zip(power, halves, strict=True)]
        halfway = jax.lax.complex(1.0 + turn * scale / 2.0, turn * re / 2.0).astype(jnp.complex64)
        walk, power, scale = jax.tree.map(lambda part: part.astype(jnp.float32), (walk, (*halves, *rests), scale))
    return Coefficients(Walk(*walk), Power(*power), scale, halfway)


def _steps_since(square):
    """J / |q|^2 = sum_(j < STEADY) |q|^2j, of the square |q|^2."""
    found, width = jnp.ones_like(square), 1
    while width < STEADY:
        found, square, width = found * (1.0 + square), square * square, 2 * width
    return found


def _power(re, im, exponent: int):
    """(a, b): (re + i im)^exponent = a + i im b; no division, so that a real q is no special case."""

    def product(left, right):
        (a, b), (c, d) = left, right
        return a * c - im * im * b * d, a * d + b * c

    result, square = (jnp.ones_like(re), jnp.zeros_like(re)), (re, jnp.ones_like(re))
    while exponent:
        if exponent & 1:
            result = product(result, square)
        exponent >>= 1
        if exponent:
            square = product(square, square)
    return result


def scaled(values: Complex64[Array, "B D N"], unit: States, scale: States) -> tuple[Array, Array]:
    """States h as pairs [B, N, D] in units of `unit` (real): h = unit (u + i s v)."""
    return jnp.real(values).transpose(0, 2, 1) / unit, jnp.imag(values).transpose(0, 2, 1) / (unit * scale)


def plain(u, v, scale: States) -> Complex64[Array, "... D N"]:
    """Pairs [..., N, D] as complex numbers [..., D, N]."""
    return jax.lax.complex(u, scale * v).swapaxes(-1, -2)
