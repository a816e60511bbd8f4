"""Attention over a ring buffer of past keys: many queries in parallel, or one.

A query at position t of its row sees the key at position s of that row iff 0 <= s <= t and

    chunk-local      s // C == t // C
    sliding window   s > t - W

so the result depends on positions alone, never on how the stream was cut into calls. In both cases a query sees no
further back than the ring of S slots holds: s > t - S.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from megalodon_jax.layers.ring import history, positions_in_slots
from megalodon_jax.types import AttentionCache
from reference.chunked_attention import masked_attention, masked_softmax
from reference.dropout import AttentionDropout


def attend_newest(
    q, cache: AttentionCache, own: tuple[jax.Array, jax.Array] | None, *,
    chunk_size: int, window: int | None, accum_dtype, drop: AttentionDropout | None,
):  # fmt: skip
    """Attention of the one newest token: reads the slots of the ring in place, in any order.

    The token is in the ring already, or `own` is its key and value: what is written to a ring of a single row is then
    read by nobody, or XLA would write a second copy for the reader on CPU. (Several rows it copies where they are read
    before they are written.) Products with one query are no matmuls: as such XLA would first copy the ring into another
    order. Slots that the query does not see are multiplied by zero: they hold older tokens, or the zeros of an empty
    ring.
    """
    newest, slots = cache.count[:, None] - int(own is None), cache.k.shape[1]
    positions = positions_in_slots(cache.count, slots)
    seen = (positions >= 0) & (positions > newest - slots) & _within(positions, newest, chunk_size, window)
    dot = {"precision": lax.Precision.HIGHEST, "preferred_element_type": accum_dtype}
    scores = _scores(q, cache.k, accum_dtype)
    if own is not None:
        seen = jnp.concatenate([seen, jnp.ones_like(newest, bool)], axis=1)
        scores = jnp.concatenate([scores, _scores(q, own[0], accum_dtype)], axis=2)
    seen = seen[:, None]
    weights = masked_softmax(scores, seen if drop is None else drop.allowed(seen, scores.shape))
    weights = weights if drop is None else drop.weights(weights)
    weights = weights.astype(cache.v.dtype)
    out = jnp.einsum("bhs,bshv->bhv", weights[..., :slots], cache.v, **dot)
    if own is not None:
        out = out + weights[..., slots:].astype(accum_dtype) * own[1][:, 0].astype(accum_dtype)
    return out.astype(q.dtype)[:, None]


def _scores(q: Float[Array, "B 1 H K"], k: Float[Array, "B S H K"], dtype) -> Float[Array, "B H S"]:
    return jnp.moveaxis(jnp.sum(q.astype(dtype) * k.astype(dtype), axis=-1), 1, 2)


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
