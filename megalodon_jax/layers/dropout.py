"""Inverted dropout, switched off where a model is deterministic."""

import jax

from reference import dropout as reference


def require_dropout_key(rates, deterministic: bool, key) -> None:
    """Raise ValueError when dropout is active and there is no PRNG key."""
    if not deterministic and key is None and any(rate > 0.0 for rate in rates):
        raise ValueError("PRNG key required for dropout: pass key=jax.random.key(...) or deterministic=True.")


def dropout(x: jax.Array, rate: float, deterministic: bool, key) -> jax.Array:
    """Zero each element with probability `rate` and scale the others by 1 / (1 - rate); rate 1 gives zeros.

    Raises:
        ValueError: dropout is active and key is None.
    """
    require_dropout_key((rate,), deterministic, key)
    if deterministic or rate == 0.0:
        return x
    return reference.dropout(x, rate, key)


def split(key, count: int):
    """`count` keys, or as many None when there is no key."""
    return (None,) * count if key is None else tuple(jax.random.split(key, count))
