"""Attention over a ring buffer of past keys: many queries in parallel, or one.

A query at position t of its row sees the key at position s of that row iff 0 <= s <= t and

    chunk-local      s // C == t // C
    sliding window   s > t - W

so the result depends on positions alone, never on how the stream was cut into calls. In both cases a query sees no
further back than the ring of S slots holds: s > t - S.
"""

import jax.numpy as jnp
from jax import lax

from megalodon_jax.layers.ring import history, positions_in_slots
from megalodon_jax.types import AttentionCache
from reference.chunked_attention import masked_attention, masked_softmax
from reference.dropout import AttentionDropout


def attend_newest(
    q, cache: AttentionCache, *, chunk_size: int, window: int | None, accum_dtype, drop: AttentionDropout | None
):
    """Attention of the one newest token, already in the ring: reads the slots in place, in any order.

    Products with one query are no matmuls: as such XLA would first copy the ring into another order on CPU. Slots that
    the query does not see are multiplied by zero: they hold older tokens, or the zeros of an empty ring.
    """
    newest = cache.count[:, None] - 1
    positions = positions_in_slots(cache.count, cache.k.shape[1])
    seen = (positions >= 0) & _within(positions, newest, chunk_size, window)
    scores = jnp.sum(q.astype(accum_dtype) * cache.k.astype(accum_dtype), axis=-1)  # [B, S, H]
    scores, seen = jnp.moveaxis(scores, 1, 2), seen[:, None]
    weights = masked_softmax(scores, seen if drop is None else drop.allowed(seen, scores.shape))
    weights = weights if drop is None else drop.weights(weights)
    weights = weights.astype(cache.v.dtype)
    values = {"precision": lax.Precision.HIGHEST, "preferred_element_type": accum_dtype}
    return jnp.einsum("bhs,bshv->bhv", weights, cache.v, **values).astype(q.dtype)[:, None]


def attend_cached(
    q, k, v, cache: AttentionCache, *, chunk_size: int, window: int | None, lengths, accum_dtype,
    drop: AttentionDropout | None,
):  # fmt: skip
    """Attention of L new, rotated queries to the cached keys and to the new ones.

    Args:
        q, k, v: [B, L, H, K], [B, L, H, K], [B, L, H, V].
        cache: what came before; its ring may have any size.
        chunk_size: C of the chunk-local rule, and the number of queries handled at a time.
        window: W of the sliding rule, None for chunk-local.
        lengths: [B], how many of the new tokens each row has; those behind are padding, which nothing sees.
        accum_dtype: dtype of scores and softmax.
        drop: dropout, or None.
    """
    length = q.shape[1]
    reach = chunk_size if window is None else window
    held = min(reach, cache.k.shape[1])
    keys, values = (
        jnp.concatenate([history(ring, cache.count, reach), new], axis=1) for ring, new in ((cache.k, k), (cache.v, v))
    )
    first, end = cache.count[:, None] - reach, (cache.count + lengths)[:, None]  # position of keys[:, 0]; past the last

    def attend(block):
        """A block of queries (its number, [B, T, H, K]) and the `reach` keys before them."""
        index, queries = block
        start, size = index * queries.shape[1], queries.shape[1]
        block_keys, block_values = (lax.dynamic_slice_in_dim(a, start, reach + size, 1) for a in (keys, values))
        at_key = (first + start + jnp.arange(reach + size))[:, None, :]
        at_query = (first + reach + start + jnp.arange(size))[:, :, None]
        seen = (at_key >= 0) & (at_key < end[..., None]) & (at_key <= at_query) & (at_key > at_query - held)
        seen = seen & _within(at_key, at_query, chunk_size, window)
        return masked_attention(
            queries,
            block_keys,
            block_values,
            seen[:, None],
            softmax_dtype=accum_dtype,
            drop=None if drop is None else drop.of_block(index),
        )

    if length <= chunk_size:
        return attend((0, q))
    pad = -length % chunk_size
    keys, values = (jnp.pad(a, ((0, 0), (0, pad), (0, 0), (0, 0))) for a in (keys, values))
    blocks = jnp.pad(q, ((0, 0), (0, pad), (0, 0), (0, 0))).reshape(q.shape[0], -1, chunk_size, *q.shape[2:])
    count = blocks.shape[1]
    out = lax.map(attend, (jnp.arange(count), jnp.moveaxis(blocks, 1, 0)))
    out = jnp.moveaxis(out, 0, 1)
    return out.reshape(q.shape[0], -1, *out.shape[3:])[:, :length]


def _within(at_key, at_query, chunk_size: int, window: int | None):
    """May a query see a key that is not later, by the rule of its mode?"""
    return at_key // chunk_size == at_query // chunk_size if window is None else at_key > at_query - window
