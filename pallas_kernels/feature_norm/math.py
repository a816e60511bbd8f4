r"""The arithmetic of feature_norm for a tile of tokens, everything float32.

    c = x - mean(x), or x if not centred        r = 1 / sqrt(mean(c^2) + eps)        n = c r
    y = n gain + bias,    gain = weight, or weight + 1 if stored minus one

Means are over the D features of a token.

Backward:

    dweight = sum_t dy n        dbias = sum_t dy        dn = dy gain
    dx = r (dn - n mean(n dn) - mean(dn))        the last term only if centred
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float32

Tile = Float32[Array, "T S"]
Column = Float32[Array, "T 1"]


def mean(x: Tile, features: int) -> Column:
    """Over the features; what stands for those that do not exist is 0."""
    return jnp.sum(x, axis=1)[:, None] / features


def normalized(x: Tile, features: int, inside, *, centred: bool, eps: float) -> tuple[Tile, Column]:
    """n, r. `inside` [S] says which features exist, None for all; the others are 0, here and in n."""
    if centred:
        x = x - mean(x, features)
        x = x if inside is None else jnp.where(inside[None], x, 0.0)
    r = lax.rsqrt(mean(x * x, features) + eps)
    return x * r, r


def gain_of(weight: Float32[Array, " S"], minus_one: bool) -> Float32[Array, " S"]:
    """What n is multiplied by."""
    return weight + 1.0 if minus_one else weight


def affine(n: Tile, gain: Float32[Array, " S"] | None, bias: Float32[Array, " S"] | None) -> Tile:
    """n gain + bias, of what there is of them."""
    n = n if gain is None else n * gain[None]
    return n if bias is None else n + bias[None]


def dx_of(n: Tile, dn: Tile, r: Column, features: int, *, centred: bool) -> Tile:
    """r (dn - n mean(n dn) - mean(dn))."""
    d = dn - n * mean(n * dn, features)
    return r * (d - mean(dn, features)) if centred else r * d
