"""The ring buffer of past keys and values.

It holds S slots, and the token at position t of a row sits in slot t mod S. Rows may be at different positions: each
has a count of its own, and takes as many of the new tokens as it has (the others are padding behind them).
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from megalodon_jax.types import AttentionCache
from reference.segments import take_rows


def empty_cache(k: Float[Array, "B L H K"], v: Float[Array, "B L H V"], slots: int) -> AttentionCache:
    """A ring of `slots` zeros shaped after keys and values."""
    ring = lambda a: jnp.zeros((a.shape[0], slots, *a.shape[2:]), a.dtype)  # noqa: E731
    return AttentionCache(ring(k), ring(v), jnp.zeros(k.shape[0], jnp.int32))


def full_cache(k: Float[Array, "B L H K"], v: Float[Array, "B L H V"], slots: int) -> AttentionCache:
    """The ring after the first L tokens of every row: where they go is known when the program is traced."""
    length = k.shape[1]

    def ring(a):
        if length < slots:
            return jnp.pad(a, ((0, 0), (0, slots - length), (0, 0), (0, 0)))
        return jnp.roll(a[:, length - slots :], length % slots, axis=1)

    return AttentionCache(ring(k), ring(v), jnp.full(k.shape[0], length, jnp.int32))


def check_cache(cache: AttentionCache, k: Float[Array, "B L H K"], v: Float[Array, "B L H V"]) -> AttentionCache:
    """The cache itself, or ValueError if its batch, heads, head dims or dtype differ from the new keys and values."""
    for name, held, new in (("k", cache.k, k), ("v", cache.v, v)):
        expected = (new.shape[0], "S", *new.shape[2:])
        if held.ndim != 4 or (held.shape[0], *held.shape[2:]) != (new.shape[0], *new.shape[2:]):
            raise ValueError(f"attention cache: {name} must have shape {expected}, got {held.shape}")
        if held.dtype != new.dtype:
            raise ValueError(f"attention cache: {name} must be {new.dtype.name}, got {held.dtype.name}")
    if cache.count.shape != k.shape[:1]:
        raise ValueError(f"attention cache: count must have shape {k.shape[:1]}, got {cache.count.shape}")
    return cache


def extend_cache(
    cache: AttentionCache, k: Float[Array, "B L H K"], v: Float[Array, "B L H V"], lengths: Int32[Array, " B"]
) -> AttentionCache:
    """The ring, of unchanged size, after appending the first `lengths` new keys and values of each row."""
    slots, count = cache.k.shape[1], cache.count + lengths
    if k.shape[1] == 1:
        rows = jnp.arange(k.shape[0])
        slot = jnp.where(lengths > 0, cache.count % slots, slots)  # out of bounds where there is nothing to write
        write = lambda ring, new: ring.at[rows, slot].set(new[:, 0], mode="drop")  # noqa: E731
    else:
        new_index = positions_in_slots(count, slots) - cache.count[:, None]
        write = lambda ring, new: jnp.where(_wide(new_index >= 0), take_rows(new, jnp.maximum(new_index, 0)), ring)  # noqa: E731
    return AttentionCache(write(cache.k, k), write(cache.v, v), count)


def resize_ring(cache: AttentionCache, slots: int) -> AttentionCache:
    """The same stream in a ring of `slots` slots, which keeps the newest tokens."""
    positions = positions_in_slots(cache.count, slots)
    seen = _wide((positions >= 0) & (positions >= cache.count[:, None] - cache.k.shape[1]))
    resize = lambda ring: jnp.where(seen, take_rows(ring, positions % ring.shape[1]), 0)  # noqa: E731
    return AttentionCache(resize(cache.k), resize(cache.v), cache.count)


def positions_in_slots(count: Int32[Array, " B"], slots: int) -> Int32[Array, "B S"]:
    """Position of the newest token that each slot can hold, negative where none has come yet."""
    newest = count[:, None] - 1
    return newest - (newest - jnp.arange(slots, dtype=jnp.int32)) % slots


def history(ring: Float[Array, "B S H F"], count: Int32[Array, " B"], length: int) -> Float[Array, "B T H F"]:
    """The last T = `length` tokens of each row in order of time; anything where the ring holds fewer."""
    positions = count[:, None] - length + jnp.arange(length, dtype=jnp.int32)
    return take_rows(ring, positions % ring.shape[1])


def _wide(a):
    """[B, S] -> [B, S, 1, 1]"""
    return a[..., None, None]
