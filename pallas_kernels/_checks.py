"""Input checks shared by the ops: say what was given and what is expected, before anything is traced."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

ACTIVATIONS = (jnp.float32, jnp.bfloat16)
FLOAT32 = (jnp.float32,)
COMPLEX64 = (jnp.complex64,)
BOOL = (jnp.bool_,)
INTEGER = (jnp.int32, jnp.int8, jnp.int16, jnp.uint8, jnp.uint16)
INT32 = (jnp.int32,)

_MAX_ELEMENTS = 2**31


def check_array(op: str, name: str, array, dims: Sequence[str], dtypes, sizes: dict[str, int]) -> None:
    """Check rank, sizes and dtype of one argument; `sizes` holds the sizes known so far and learns the new ones.

    Raises:
        ValueError: wrong rank or size, or an empty axis.
        TypeError: not an array, or wrong dtype (float16 included).
    """
    if not (hasattr(array, "shape") and hasattr(array, "dtype")):
        raise TypeError(f"{op}: {name} must be an array [{', '.join(dims)}], got {type(array).__name__}.")
    given = tuple(array.shape)
    if len(given) != len(dims):
        raise ValueError(f"{op}: {name} must have shape [{', '.join(dims)}], got {given}.")
    expected = tuple(sizes.setdefault(dim, size) for dim, size in zip(dims, given, strict=True))
    if given != expected:
        raise ValueError(f"{op}: {name} must have shape [{', '.join(dims)}] = {expected}, got {given}.")
    if 0 in given:
        raise ValueError(f"{op}: {name} is empty, shape {given}; every axis must hold at least one element.")
    if array.size >= _MAX_ELEMENTS:
        raise ValueError(f"{op}: {name} has {array.size} elements; at most 2^31 - 1 are supported. Split the batch.")
    if array.dtype not in dtypes:
        allowed = " or ".join(jnp.dtype(d).name for d in dtypes)
        hint = " float16 overflows in the EMA and the statistics; use bfloat16." if array.dtype == jnp.float16 else ""
        raise TypeError(f"{op}: {name} must be {allowed}, got {jnp.dtype(array.dtype).name}.{hint}")


def check_choice(op: str, name: str, value, allowed: Sequence | Mapping) -> None:
    """Raise ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{op}: {name} must be one of {', '.join(map(repr, allowed))}, got {value!r}.")


def check_positive(op: str, name: str, value: int) -> None:
    """Raise ValueError unless `value` is a positive int."""
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise ValueError(f"{op}: {name} must be a positive int, got {value!r}.")


def is_known(array) -> bool:
    """Is it an array with values, not one that is traced?"""
    return isinstance(array, (jax.Array, np.ndarray)) and not isinstance(array, Tracer)


def check_range(op: str, name: str, array, least: int, most: int) -> None:
    """Raise ValueError if an array whose values are known has one outside [least, most]."""
    if not is_known(array):
        return
    values = np.asarray(array)
    if values.min() < least or values.max() > most:
        raise ValueError(f"{op}: {name} must be in [{least}, {most}], got {values.tolist()}.")


def check_finite(op: str, name: str, value) -> None:
    """Raise TypeError if `value` is an array or traced, ValueError unless it is finite."""
    _check_known(op, name, value)
    if not np.isfinite(value):
        raise ValueError(f"{op}: {name} must be finite, got {value!r}.")


def check_number(op: str, name: str, value) -> None:
    """Raise TypeError if `value` is an array or traced, ValueError unless it is positive."""
    _check_known(op, name, value)
    if not value > 0:
        raise ValueError(f"{op}: {name} must be positive, got {value!r}.")


def check_tokens(op: str, mask, segment_ids, sizes: dict[str, int]) -> None:
    """Check the two arguments every op takes: mask [B, L] bool and segment_ids [B, L] int."""
    if mask is not None:
        check_array(op, "mask", mask, ("B", "L"), BOOL, sizes)
    if segment_ids is not None:
        check_array(op, "segment_ids", segment_ids, ("B", "L"), INTEGER, sizes)


def _check_known(op: str, name: str, value) -> None:
    if not isinstance(value, int | float | np.number):
        raise TypeError(f"{op}: {name} must be a Python number, known when the program is traced; got {value!r}.")
