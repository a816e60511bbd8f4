r"""The arithmetic of normalized_rotary for a tile of tokens of one head, everything float32.

    n = z / sqrt(mean(z^2) + eps)              the mean over the K features of the head
    u = n factors + shift                      once for queries, once for keys;  factors = (scale + offset) factor
    (q_a, q_b) = (u_a cos - u_b sin, u_b cos + u_a sin),    angle = position base^(-2 j / K),  j = 0 .. K/2 - 1

where (a, b) are the features that angle j turns: (j, j + K/2), or (2 j, 2 j + 1) if interleaved.

Backward, with r = 1 / sqrt(mean(z^2) + eps):

    (du_a, du_b) = (dq_a cos + dq_b sin, dq_b cos - dq_a sin)
    dscale = factor sum_t du n        dshift = sum_t du        dn = du factors, summed over queries and keys
    dz = r (dn - n mean(n dn))                                       with z + bias for z,  dbias = sum_t dz
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float32

from reference.normalized_rotary import angles

Half = Float32[Array, "T S"]


class Pair(NamedTuple):
    """The features (a, b) that are turned together: of a tile [T, S], or of a parameter [S]."""

    a: Array
    b: Array


class Turn(NamedTuple):
    """cos and sin of the angles."""

    cos: Half
    sin: Half


def turn_of(positions, of_digits) -> Turn:
    """Of positions [T], and the angles [S] of each of their digits."""
    angle = angles(positions, of_digits)
    return Turn(jnp.cos(angle), jnp.sin(angle))


def inverse_rms(z: Pair, features: int, eps: float) -> Float32[Array, " T"]:
    """r; features that do not exist are 0."""
    return lax.rsqrt(jnp.sum(z.a * z.a + z.b * z.b, axis=1) / features + eps)


def plus(z: Pair, bias: Pair) -> Pair:
    """z + bias."""
    return Pair(z.a + bias.a[None], z.b + bias.b[None])


def scaled(z: Pair, r) -> Pair:
    """r z, for r [T]."""
    return Pair(r[:, None] * z.a, r[:, None] * z.b)


def factors(scale: Pair, offset: float, factor: float) -> Pair:
    """(scale + offset) factor."""
    return Pair((scale.a + offset) * factor, (scale.b + offset) * factor)


def affine(n: Pair, factors: Pair, shift: Pair) -> Pair:
    """n factors + shift."""
    return Pair(*(part * s[None, :] + t[None, :] for part, s, t in zip(n, factors, shift, strict=True)))


def turned(u: Pair, by: Turn) -> Pair:
    """u, turned by the angles."""
    return Pair(u.a * by.cos - u.b * by.sin, u.b * by.cos + u.a * by.sin)


def turned_back(u: Pair, by: Turn) -> Pair:
    """u, turned by minus the angles."""
    return Pair(u.a * by.cos + u.b * by.sin, u.b * by.cos - u.a * by.sin)


def times(left: Pair, right: Pair) -> Pair:
    """The products of their entries."""
    return Pair(left.a * right.a, left.b * right.b)


def multiple(pair: Pair, factor: float) -> Pair:
    """Its entries times a number."""
    return Pair(pair.a * factor, pair.b * factor)


def add_tokens(total: Pair, d: Pair) -> Pair:
    """total [S] + sum_t d [T, S]."""
    return Pair(total.a + jnp.sum(d.a, axis=0), total.b + jnp.sum(d.b, axis=0))


def dn_of(dus: tuple[Pair, Pair], factors: tuple[Pair, Pair]) -> Pair:
    """du factors, summed over queries and keys."""
    (q, k), (for_q, for_k) = dus, factors
    return Pair(q.a * for_q.a[None] + k.a * for_k.a[None], q.b * for_q.b[None] + k.b * for_k.b[None])


def dz_of(n: Pair, dn: Pair, r, features: int) -> Pair:
    """r (dn - n mean(n dn))."""
    mean = jnp.sum(n.a * dn.a + n.b * dn.b, axis=1) / features
    return Pair(*(r[:, None] * (d - part * mean[:, None]) for d, part in zip(dn, n, strict=True)))
