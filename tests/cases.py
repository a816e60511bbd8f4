"""Random inputs of the ops, made in NumPy from a seed; shapes chosen to hit every path of the implementations."""

import jax.numpy as jnp
import numpy as np

KINDS = ("plain", "mask", "segments")


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def normal(r, *shape):
    return r.normal(size=shape).astype(np.float32)


def complex_normal(r, *shape):
    return (normal(r, *shape) + 1j * normal(r, *shape)).astype(np.complex64)


def tokens(r, kind: str, batch: int, length: int) -> dict:
    """mask and segment_ids of one kind: documents of odd lengths, padding inside, in front and behind, an id reused."""
    if kind == "plain":
        return {}
    mask = r.random((batch, length)) > 0.3
    if kind == "mask":
        return {"mask": jnp.asarray(mask)}
    ids = np.zeros((batch, length), np.int32)
    for row in range(batch):
        cuts = np.sort(r.choice(np.arange(1, length), size=min(length - 1, 5), replace=False)) if length > 1 else []
        for index, piece in enumerate(np.split(np.arange(length), cuts)):
            ids[row, piece] = (1, 2, 0, 2, 3, 1)[(index + row) % 6]
    return {"mask": jnp.asarray(mask), "segment_ids": jnp.asarray(ids)}


def ema(r, batch: int, length: int, features: int, states: int, *, low: float = 0.0, high: float = 0.999):
    """x, p, q, gamma, omega, h0 with |q| in [low, high]."""
    radius = r.uniform(low, high, (features, states))
    q = (radius * np.exp(1j * r.uniform(-np.pi, np.pi, (features, states)))).astype(np.complex64)
    return (
        normal(r, batch, length, features),
        r.uniform(0.05, 1.0, (features, states)).astype(np.float32),
        q,
        complex_normal(r, features, states),
        normal(r, features),
        complex_normal(r, batch, features, states),
    )


def norm_state(r, batch: int, groups: int):
    """(count, mean, var) with an empty first row."""
    count = r.integers(1, 9, batch).astype(np.int32)
    count[0] = 0
    return count, normal(r, batch, groups), r.uniform(0.2, 2.0, (batch, groups)).astype(np.float32)
