r"""Queries and keys from their shared projection, pure jnp (Megalodon, arXiv 2404.08801, section 3.3; rotary embedding
of RoFormer, arXiv 2104.09864).

    n = z / sqrt(mean(z^2) + eps)        q, k = rotate(n factors[i] + shift[i], positions),   i = 0, 1

with z + bias for z where there is one, and factors = (scale + scale_offset) scale_factor.

Float32 throughout, rounded once at the end. In float32 position times frequency would be wrong by 0.03 at a million, so
the position is cut into digits, position = sum_d digit_d 256^d, and

    angle = sum_d digit_d ((256^d base^(-2 j / K)) mod 2 pi)

which is wrong by 3e-4 at most, wherever the stream is. Up to position 255 it is the same product as ever.
"""

from collections.abc import Iterable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Float32, Int

_BITS, _DIGITS = 8, 4  # of an int32


def inv_freq(depth: int, base: float) -> np.ndarray:
    """base^(-2 j / depth), j = 0 .. depth / 2 - 1, in float64."""
    return np.exp(np.arange(depth // 2) * (-2.0 * np.log(base) / depth))


def digit_angles(depth: int, base: float) -> np.ndarray:
    """What a unit of each digit turns by, [digits, depth / 2] float32 in [-pi, pi)."""
    units = 2.0 ** (_BITS * np.arange(_DIGITS)[:, None]) * inv_freq(depth, base)
    return (np.remainder(units + np.pi, 2 * np.pi) - np.pi).astype(np.float32)


def angles(positions: Int[Array, "*T"], of_digits: Iterable[Float32[Array, " S"]]) -> Float32[Array, "*T S"]:
    """The angles of int32 positions, modulo 2 pi; `of_digits` are the rows of `digit_angles`."""
    digits = [(positions >> (_BITS * d)) & (2**_BITS - 1) for d in range(_DIGITS - 1)]
    digits.append(positions >> (_BITS * (_DIGITS - 1)))  # keeps the sign
    parts = [digit.astype(jnp.float32)[..., None] * unit for digit, unit in zip(digits, of_digits, strict=True)]
    return sum(parts[1:], parts[0])


def rotate(
    z: Float[Array, "B L H K"], positions: Int[Array, "*B L"], base: float, *, interleaved: bool = False
) -> Float[Array, "B L H K"]:
    """z with the pairs (j, j + K/2), or (2 j, 2 j + 1) if interleaved, turned by position base^(-2 j / K).

    In float32, rounded to the dtype of z.
    """
    angle = angles(positions.astype(jnp.int32), map(jnp.asarray, digit_angles(z.shape[-1], base)))[..., None, :]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    wide = z.astype(jnp.float32)
    a, b = (wide[..., 0::2], wide[..., 1::2]) if interleaved else jnp.split(wide, 2, axis=-1)
    a, b = a * cos - b * sin, b * cos + a * sin
    turned = jnp.stack([a, b], axis=-1).reshape(z.shape) if interleaved else jnp.concatenate([a, b], axis=-1)
    return turned.astype(z.dtype)


@partial(jax.jit, static_argnames=("eps", "base", "interleaved", "scale_offset", "scale_factor"))
def normalized_rotary(
    z: Float[Array, "B L H K"],
    scale: Float32[Array, "2 H K"],
    shift: Float32[Array, "2 H K"],
    bias: Float32[Array, "H K"] | None = None,
    *,
    positions: Int[Array, "*B L"],
    eps: float = 1e-5,
    base: float = 10000.0,
    interleaved: bool = False,
    scale_offset: float = 0.0,
    scale_factor: float = 1.0,
) -> tuple[Float[Array, "B L H K"], Float[Array, "B L H K"]]:
    """Reference normalized_rotary; arguments, shapes and meaning as in `pallas_kernels.normalized_rotary`."""
    wide = z.astype(jnp.float32) if bias is None else z.astype(jnp.float32) + bias
    n = wide * lax.rsqrt(jnp.mean(jnp.square(wide), -1, keepdims=True) + eps)
    factors = (scale + scale_offset) * scale_factor
    q, k = (rotate(n * factors[i] + shift[i], positions, base, interleaved=interleaved).astype(z.dtype) for i in (0, 1))
    return q, k
