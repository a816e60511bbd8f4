"""Arithmetic that NumPy does not have: one-rounding fma, TF32, C division, saturating casts.

All functions take scalars or arrays and keep the dtype.
"""

from typing import Any

import numpy as np

_F64_BITS_BELOW_F32_HALF = np.int64((1 << 28) - 1)
_TF32_KEPT = np.uint32(0xFFFFE000)  # sign, exponent and 10 bits of the fraction
UNSIGNED = {np.dtype(f"i{n}"): np.dtype(f"u{n}") for n in (1, 2, 4, 8)}


def fma(a: Any, b: Any, c: Any) -> Any:
    """a*b + c in float32 with a single rounding (round to nearest even), as `fma.rn.f32`.

    The product is exact in float64; the sum is rounded there. Rounding that to float32 goes wrong only when the float64
    sum is inexact and lies half-way between two float32 numbers, and then its low 28 bits are zero.
    """
    product = np.multiply(a, b, dtype=np.float64)
    total = np.add(product, c, dtype=np.float64)
    if not (total.view(np.int64) & _F64_BITS_BELOW_F32_HALF).all():
        total = _round_to_odd(total, product, c)
    return total.astype(np.float32)


def _round_to_odd(total: Any, product: Any, addend: Any) -> Any:
    """The float64 sum, moved off even fractions towards the exact sum where it is inexact: then it is safe to round."""
    rest = total - product
    error = (product - (total - rest)) + (addend - rest)  # Knuth's two-sum: exact; NaN where something is infinite
    bits = np.asarray(total).view(np.int64)
    even = (bits & 1) == 0
    away = np.where(error > 0, total > 0, total < 0)  # is the exact sum larger in magnitude?
    step = np.where(away, 1, -1)
    inexact = (error > 0) | (error < 0)
    return np.where(even & inexact, bits + step, bits).view(np.float64)[()]


def tf32(x: np.ndarray) -> np.ndarray:
    """float32 cut to TF32's 10 fraction bits, as the tensor core reads it: truncation, the larger of the errors."""
    return (np.ascontiguousarray(x).view(np.uint32) & _TF32_KEPT).view(np.float32)


def bf16_part(x: np.ndarray) -> np.ndarray:
    """float32 rounded to bfloat16 (nearest even), as float32."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return np.where(np.isfinite(x), rounded.view(np.float32), x)


def unsigned(x: Any) -> Any:
    """The same bits as an unsigned integer; booleans stay."""
    return x if x.dtype == np.bool_ else x.view(UNSIGNED[x.dtype])


def divide(x: Any, y: Any) -> Any:
    """Integer division towards zero."""
    return np.floor_divide(x - np.fmod(x, y), y)


def to_integer(x: Any, dtype: np.dtype) -> Any:
    """Float to integer: towards zero, saturating, NaN to 0, as `cvt.rzi`."""
    wide = np.trunc(np.nan_to_num(np.asarray(x, np.float64), nan=0.0, posinf=np.inf, neginf=-np.inf))
    limits = np.iinfo(dtype)
    result = np.clip(wide, limits.min, limits.max).astype(dtype)
    return np.where(wide >= limits.max, limits.max, result).astype(dtype)[()]


def to_float(x: Any, dtype: np.dtype) -> Any:
    """Signed integer to float; a boolean is one signed bit, 0 or -1."""
    return (np.negative(x.astype(np.int8)) if x.dtype == np.bool_ else x).astype(dtype)


def sign_extend(x: Any, dtype: np.dtype) -> Any:
    """Wider signed integer; a boolean is one signed bit, 0 or -1."""
    wide = x.astype(dtype)
    return np.negative(wide) if x.dtype == np.bool_ else wide


def truncate(x: Any, dtype: np.dtype) -> Any:
    """Narrower integer; a boolean is the lowest bit."""
    return (x & x.dtype.type(1)).astype(np.bool_) if dtype == np.bool_ else x.astype(dtype)


def count_leading_zeros(x: Any) -> Any:
    """Leading zero bits, in the dtype of x."""
    bits, count = unsigned(np.asarray(x)), np.zeros(np.shape(x), np.int64)
    width = bits.dtype.itemsize * 8
    for position in range(width):
        count += (bits >> bits.dtype.type(position)) == 0
    return count.astype(x.dtype)[()]


def count_ones(x: Any) -> Any:
    """Set bits, in the dtype of x."""
    return np.bitwise_count(unsigned(x)).astype(x.dtype)
