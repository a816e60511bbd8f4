r"""The arithmetic of ComplexEMA for one step of time, in real float32 numbers.

h[t] = q h[t-1] + p x[t]                    y[t] = Re(sum_n gamma_n h[t, n]) + omega x[t]

Five operations per state. With m = h / p = u + i s v and s = Im q,

    u' = Re(q) u - s^2 v + x        v' = Re(q) v + u        y += Re(c) u' - s Im(c) v',        c = gamma p

which needs no s of its own: a real q is no special case. Only an incoming state is divided by p and s, and by s the
cotangent of a returned one; there |p| and |s| are raised to TINY, which puts an error of TINY |x| into h at every step
and turns it by an angle of TINY.

Drift. -s^2 is rounded to float32, so that the kernel really walks with a neighbour of q, and after 1 / (1 - |q|) steps
the relative error would be that many half units. Here s is the root of the rounded square, the kernel's
qk = Re q + i s is known, and every STEADY steps the state is turned back by

    k = J i (Im q - s) / qk        u += Re(k) u - s Im(k) v        v += Re(k) v + Im(k) / s u

where J = |q|^2 (1 - |q|^(2 STEADY)) / (1 - |q|^2) is how many of these steps ago, on average, independent inputs of
one size came in that the state consists of: STEADY if memory is long, few if it is short. What is read in between is
read with c (1 + k / 2): half a turn is the mean of what is missing.

Chunks of T steps are walked side by side, each from state 0, then joined by h' = q^T h + (end of the chunk); q^T is
formed in float64 and kept in two float32 halves, as it is applied over and over. The carried states are pairs (u, v)
too, and q^T = a + i b acts as u' = a u - b s v, v' = a v + b / s u with b / s a polynomial of q.

Backward, in JAX's convention for complex cotangents (that of h is dL/dRe - i dL/dIm): the same filter back in time,

    m[t] = q m[t+1] + dy[t]         dx[t] = Re(sum_n gamma_n p_n m[t, n]) + omega dy[t]

and, with e[t] = dm[t]/dq = q e[t+1] + m[t+1] walked beside it, S = sum_t x[t] m[t], Z = sum_t x[t] e[t],

    dgamma = p S + h0 q m[0]        dp = Re(gamma S)        dh0 = gamma q m[0]        dq = gamma p Z + gamma h0 m[0]

Sums over time are added up tile by tile: the rounding of a sum grows with the number of its terms. With chunks, e
starts from 0 at each one's end and p Z takes the term q h e at its beginning, h the state entering it.
A cotangent dh of the returned state is walked by itself: m = dh at its token, gamma = 1, dy = 0.

A reset throws m and e away.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float32

STEADY = 32
TINY = 2.0**-40

Lanes = Float32[Array, " S"]
Fma = Callable[[Lanes, Lanes, Lanes], Lanes]


class Number(NamedTuple):
    """One state's u + i s v, for the features of a program."""

    u: Lanes
    v: Lanes


class Decay(NamedTuple):
    """One step of time for one state: Re q and -s^2."""

    re: Lanes
    sq: Lanes


def zeros(lanes: int) -> Number:
    """The state 0."""
    zero = jnp.zeros((lanes,), jnp.float32)
    return Number(zero, zero)


def advance(fma: Fma, decay: Decay, m: Number, x: Lanes | None) -> Number:
    """q m + x, or q m without an input."""
    turned = decay.sq * m.v if x is None else fma(decay.sq, m.v, x)
    return Number(fma(decay.re, m.u, turned), fma(decay.re, m.v, m.u))


def advance_slope(fma: Fma, decay: Decay, e: Number, m: Number) -> Number:
    """q e + m: the derivative of the next m by q, of e and m before the step."""
    return Number(fma(decay.re, e.u, fma(decay.sq, e.v, m.u)), fma(decay.re, e.v, e.u + m.v))


def read(fma: Fma, c: Number, m: Number, start: Lanes) -> Lanes:
    """start + Re(c m); c holds Re c and -s Im c."""
    return fma(c.v, m.v, fma(c.u, m.u, start))


def weigh(fma: Fma, xs: Sequence[Lanes], ms: Sequence[Number]) -> Number:
    """sum x m over a few steps."""
    total = Number(xs[0] * ms[0].u, xs[0] * ms[0].v)
    for x, m in zip(xs[1:], ms[1:], strict=True):
        total = Number(fma(x, m.u, total.u), fma(x, m.v, total.v))
    return total


def turn_back(fma: Fma, decay: Decay, k: Number, m: Number) -> Number:
    """(1 + k) m: m after STEADY steps, turned back."""
    return Number(fma(k.u, m.u, fma(k.v * decay.sq, m.v, m.u)), fma(k.u, m.v, fma(k.v, m.u, m.v)))


def product(fma: Fma, decay: Decay, a: Number, b: Number) -> Number:
    """a b."""
    return Number(fma(a.u, b.u, (decay.sq * a.v) * b.v), fma(a.u, b.v, a.v * b.u))  # a.v b.v may overflow


def add(a: Number, b: Number) -> Number:
    """a + b."""
    return Number(a.u + b.u, a.v + b.v)


def forget(reset, m: Number) -> Number:
    """0 where `reset` is True, else m."""
    return Number(jnp.where(reset, 0.0, m.u), jnp.where(reset, 0.0, m.v))
