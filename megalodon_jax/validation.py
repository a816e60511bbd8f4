"""Checks at the Python boundary of a model call.

Shapes and dtypes are always checked. Values are checked when they are concrete (eager calls); inside traced code only
with `checks=True`, because a check there is a host callback in the compiled program.
"""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from megalodon_jax.types import ModelCache, NormState

MOST_TOKENS = 2**31 - 1  # counters are int32


def check_ids(name: str, ids, *, like=None) -> None:
    """Integer array [batch, length], not empty, and of the shape of `like` if given.

    Raises:
        TypeError: not an integer array.
        ValueError: wrong shape or empty.
    """
    if not (hasattr(ids, "dtype") and jnp.issubdtype(ids.dtype, jnp.integer)):
        raise TypeError(f"{name} must be an integer array, got {getattr(ids, 'dtype', type(ids).__name__)}")
    if ids.ndim != 2:
        raise ValueError(f"{name} must have shape [batch, length], got {ids.shape}")
    if 0 in ids.shape:
        raise ValueError(f"{name} is empty, shape {ids.shape}; at least one token per row is needed")
    if like is not None and ids.shape != like.shape:
        raise ValueError(f"{name} must have the shape of input_ids {like.shape}, got {ids.shape}")


def check_mask(mask, like) -> None:
    """Boolean array of the shape of `like`, or None.

    Raises:
        TypeError: not boolean.
        ValueError: wrong shape.
    """
    if mask is None:
        return
    if not hasattr(mask, "dtype") or mask.dtype != jnp.bool_:
        raise TypeError(
            f"attention_mask must be bool (True = valid), got {getattr(mask, 'dtype', type(mask).__name__)}"
        )
    if mask.shape != like.shape:
        raise ValueError(f"attention_mask must have the shape of input_ids {like.shape}, got {mask.shape}")


def require(array: jax.Array, bad: Callable, message: str, checks: bool, *, on: jax.Array | None = None) -> jax.Array:
    """`array`, or `on` if given, or an error if the element-wise predicate `bad(array)` holds anywhere.

    In a traced program it is the use of the result that raises the error.

    Raises:
        ValueError: concrete and bad. Traced values raise at run time, and only with `checks`.
    """
    result = array if on is None else on
    if isinstance(array, Tracer):
        return eqx.error_if(result, bad(array), message) if checks else result
    # NumPy, because inside a trace even concrete values would be staged by jnp.
    if np.any(bad(np.asarray(array))):
        raise ValueError(message)
    return result


def require_in_range(name: str, ids: jax.Array, size: int, checks: bool) -> jax.Array:
    """`ids`, or an error if one of them is outside [0, size)."""
    message = f"{name} contain out-of-bounds values. Valid range: [0, {size})"
    return require(ids, lambda a: (a < 0) | (a >= size), message, checks)


def require_room(ids: jax.Array, cache: ModelCache, more: int, checks: bool, most: int = MOST_TOKENS) -> jax.Array:
    """`ids` [B, L], or an error if so many more than the cache holds are more than `most`, or its counters disagree."""
    layers = [layer for layer in cache.layer_caches if layer is not None]
    if cache.final_norm is not None and cache.layer_caches and not layers:
        message = "the cache holds no layers but tokens (a training call returns layers with detach_cache=False alone)"
        ids = require(cache.final_norm.count, lambda c: c > 0, message, checks, on=ids)
    holders = [part for layer in layers for part in (layer.attn, layer.norm)] + [cache.final_norm]
    counters = [part.count for part in holders if part is not None]
    for count in counters:
        if count.shape != ids.shape[:1]:
            raise ValueError(f"the cache has counts of shape {count.shape}, input_ids have shape {ids.shape}")
        message = f"the stream is full: {more} more tokens would pass {most}, the most that a stream has"
        ids = require(count, lambda c: c > most - more, message, checks, on=ids)
        if not isinstance(count, Tracer) and not np.array_equal(count, counters[0]):
            raise ValueError(
                f"parts of the cache are at different positions: {np.asarray(counters[0]).tolist()} and "
                f"{np.asarray(count).tolist()}; a part that is to begin anew is None"
            )
    return ids


def full_is_nan(state: NormState, more: int) -> NormState:
    """The statistics, NaN in rows whose counter so many more tokens would overflow: no check, but no silence either."""
    full = (state.count < 0) | (state.count > MOST_TOKENS - more)
    return dataclasses.replace(state, mean=jnp.where(full[:, None], jnp.nan, state.mean))


def is_all_true(mask) -> bool:
    """Is it known that `mask` is True everywhere?"""
    return not isinstance(mask, Tracer) and bool(np.all(np.asarray(mask)))
