"""Streams of small models: the modes of the cache, a call, many calls, and the float64 model that knows no calls."""

import functools

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from megalodon_jax.parameters import named_parameters
from reference import oracle_numpy_model
from tests import models

WINDOW = 11
MODES = {"chunk-local": {}, "sliding": {"max_cache_len": WINDOW}, "unbounded": {"cache_unbounded": True}}

step = eqx.filter_jit(lambda model, ids, cache, mask=None: model(ids, mask, cache, return_cache=True))


def stream(model, ids, pieces, cache=None):
    """Logits and the last cache of calls on pieces of these lengths."""
    outputs, start = [], 0
    for length in pieces:
        logits, cache = step(model, ids[:, start : start + length], cache)
        outputs.append(logits)
        start += length
    assert start == ids.shape[1]
    return jnp.concatenate(outputs, axis=1), cache


def first_key(mode: str, chunk: int = models.SIZES["chunk_size"]):
    """Position of the first key that the query at t sees."""
    windows = {"sliding": WINDOW, "unbounded": chunk}
    return (lambda t: t - t % chunk) if mode == "chunk-local" else (lambda t: max(t - windows[mode] + 1, 0))


@functools.cache
def truth(mode: str, batch: int, length: int, **changes) -> np.ndarray:
    """Logits of `models.ids(batch, length)` in float64."""
    model = models.build(**MODES[mode], **changes)
    given = named_parameters(model), model.config, models.ids(batch, length)
    return oracle_numpy_model.logits(*given, first_key=first_key(mode))
