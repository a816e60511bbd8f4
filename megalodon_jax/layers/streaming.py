"""Attention over a ring buffer of past keys: many queries in parallel, or one.

The ring holds S slots and the token at absolute position t sits in slot t mod S. A query at position t sees key s iff
0 <= s <= t and

    chunk-local      s // C == t // C
    sliding window   s > t - W

so the result depends on positions alone, never on how the stream was cut into calls. In both cases a query sees no
further back than the ring holds: s > t - S.
"""

import jax.numpy as jnp
from jax import lax

from megalodon_jax.types import AttentionCache
from reference.chunked_attention import masked_attention


def empty_cache(k, v, slots: int) -> AttentionCache:
    """A ring of `slots` zeros shaped after keys [B, L, H, K] and values [B, L, H, V]."""
    ring = lambda a: jnp.zeros((a.shape[0], slots, *a.shape[2:]), a.dtype)  # noqa: E731
    return AttentionCache(ring(k), ring(v), jnp.zeros((), jnp.int32))


def check_cache(cache: AttentionCache, k, v) -> AttentionCache:
    """The cache itself, or ValueError if its batch, heads, head dims or dtype differ from the new keys and values."""
    for name, held, new in (("k", cache.k, k), ("v", cache.v, v)):
        expected = (new.shape[0], "S", *new.shape[2:])
        if held.ndim != 4 or (held.shape[0], *held.shape[2:]) != (new.shape[0], *new.shape[2:]):
            raise ValueError(f"attention cache: {name} must have shape {expected}, got {held.shape}")
        if held.dtype != new.dtype:
            raise ValueError(f"attention cache: {name} must be {new.dtype.name}, got {held.dtype.name}")
    return cache


def extend_cache(cache: AttentionCache, k, v) -> AttentionCache:
    """The ring, of unchanged size, after appending the new keys and values."""
    length, slots = k.shape[1], cache.k.shape[1]
    count = cache.count + length
    if length == 1:
        write = lambda ring, new: lax.dynamic_update_slice_in_dim(ring, new, cache.count % slots, 1)  # noqa: E731
        return AttentionCache(write(cache.k, k), write(cache.v, v), count)

    def ring(held, new):
        newest = jnp.concatenate([_history(held, cache.count, slots), new], axis=1)[:, length:]
        return jnp.roll(newest, count % slots, axis=1)

    return AttentionCache(ring(cache.k, k), ring(cache.v, v), count)


def resize_ring(cache: AttentionCache, slots: int) -> AttentionCache:
    """The same stream in a ring of `slots` slots, which keeps the newest tokens."""
    resize = lambda held: jnp.roll(_history(held, cache.count, slots), cache.count % slots, axis=1)  # noqa: E731
    return AttentionCache(resize(cache.k), resize(cache.v), cache.count)


def attend_newest(q, cache: AttentionCache, *, chunk_size: int, window: int | None, accum_dtype, weights_transform):
    """Attention of the one newest token, already in the ring: reads the slots in place, in any order."""
    newest = cache.count - 1
    slots = cache.k.shape[1]
    at_slot = newest - (newest - jnp.arange(slots)) % slots  # absolute position held by each slot
    allowed = at_slot >= 0
    if window is None:
        allowed = allowed & (at_slot // chunk_size == newest // chunk_size)
    else:
        allowed = allowed & (at_slot > newest - window)
    return masked_attention(
        q, cache.k, cache.v, allowed[None, None, None], softmax_dtype=accum_dtype, weights_transform=weights_transform
    )


def attend_cached(
    q, k, v, cache: AttentionCache, *, chunk_size: int, window: int | None, mask, accum_dtype, weights_transform
):  # fmt: skip
    """Attention of L new, rotated queries to the cached keys and to the new ones.

    Args:
        q, k, v: [B, L, H, K], [B, L, H, K], [B, L, H, V].
        cache: what came before; its ring may have any size.
        chunk_size: C of the chunk-local rule, and the number of queries handled at a time.
        window: W of the sliding rule, None for chunk-local.
        mask: [B, L] bool for the new keys, or None.
        accum_dtype: dtype of scores and softmax.
        weights_transform: applied to the softmax weights (dropout), or None.
    """
    length = q.shape[1]
    reach = chunk_size if window is None else window
    seen = min(reach, cache.k.shape[1])
    keys, values = (
        jnp.concatenate([_history(held, cache.count, reach), new], axis=1) for held, new in ((cache.k, k), (cache.v, v))
    )
    first = cache.count - reach  # absolute position of keys[:, 0]
    valid = jnp.ones((k.shape[0], length), bool) if mask is None else mask
    valid = jnp.pad(valid, ((0, 0), (reach, 0)), constant_values=True)

    def attend(index, queries):
        """One block: its queries and the `reach` keys before them."""
        start, size = index * queries.shape[1], queries.shape[1]
        span = [lax.dynamic_slice_in_dim(a, start, reach + size, 1) for a in (keys, values, valid)]
        at_key = (first + start + jnp.arange(reach + size))[None, :]
        at_query = (cache.count + start + jnp.arange(size))[:, None]
        allowed = (at_key >= 0) & (at_key <= at_query) & (at_key > at_query - seen)
        if window is None:
            allowed = allowed & (at_key // chunk_size == at_query // chunk_size)
        allowed = allowed & span[2][:, None, None]
        return masked_attention(
            queries, span[0], span[1], allowed, softmax_dtype=accum_dtype, weights_transform=weights_transform
        )

    if length <= chunk_size:
        return attend(0, q)
    pad = -length % chunk_size
    keys, values, valid = (jnp.pad(a, ((0, 0), (0, pad)) + ((0, 0),) * (a.ndim - 2)) for a in (keys, values, valid))
    blocks = jnp.pad(q, ((0, 0), (0, pad), (0, 0), (0, 0))).reshape(q.shape[0], -1, chunk_size, *q.shape[2:])
    count = blocks.shape[1]
    out = lax.map(lambda step: attend(*step), (jnp.arange(count), jnp.moveaxis(blocks, 1, 0)))
    out = jnp.moveaxis(out, 0, 1)
    return out.reshape(q.shape[0], -1, *out.shape[3:])[:, :length]


def _history(ring, count, length: int):
    """The last `length` tokens of a ring in order of time, zeros in front where the ring holds fewer."""
    held = ring.shape[1]
    ordered = jnp.roll(ring, -(count % held), axis=1)
    if held >= length:
        return ordered[:, held - length :]
    return jnp.pad(ordered, ((0, 0), (length - held, 0), (0, 0), (0, 0)))
