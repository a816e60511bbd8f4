"""Causal attention over a whole sequence, with a cache of fixed size.

    o[i] = sum_j softmax_j(q[i] . k[j] / sqrt(K)) v[j]    over the keys j <= i of i's own document

It is chunked attention with one chunk, as long as a sequence can be, so it runs on the same kernels. The cache has one
slot for every position; slots that no token has come to yet are never seen.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from megalodon_jax.layers.ring import empty_cache, extend_cache, full_cache
from megalodon_jax.layers.streaming import attend_newest
from megalodon_jax.types import AttentionCache
from pallas_kernels import chunked_attention


class Tokens(NamedTuple):
    """What attention has to know about the tokens of a call.

    Attributes:
        positions: of each in its sequence or document.
        mask: which there are, None for all; in a call with a cache they stand in front of the others.
        segment_ids: documents, None for one; not in a call with a cache.
        slots: the most tokens of a sequence.
        keep: return the cache after them?
    """

    positions: Int[Array, "*B L"]
    mask: Bool[Array, "B L"] | None
    segment_ids: Int[Array, "B L"] | None
    slots: int
    keep: bool


def attend(
    q: Float[Array, "B L H K"],
    k: Float[Array, "B L H K"],
    v: Float[Array, "B L H K"],
    tokens: Tokens,
    cache: AttentionCache | None = None,
    dropout: float = 0.0,
    key=None,
) -> tuple[Float[Array, "B L H K"], AttentionCache | None]:
    """Attention of new tokens to those in the cache and to themselves, and the cache after them, if it is to be kept.

    Scores and softmax are float32. A query without a key gives 0.

    Args:
        q, k, v: of the new tokens; q is not yet scaled.
        tokens: what they are.
        cache: what came before, None for nothing; with `tokens.slots` slots.
        dropout, key: rate at which softmax weights are dropped, and what draws it.
    """
    batch, length = q.shape[:2]
    q = (q.astype(jnp.float32) / math.sqrt(q.shape[-1])).astype(q.dtype)
    options = {"chunk_size": tokens.slots, "mask": tokens.mask, "dropout_rate": dropout, "dropout_key": key}
    if cache is None:
        o = chunked_attention(q, k, v, segment_ids=tokens.segment_ids, **options)
        return o, _first_cache(k, v, tokens) if tokens.keep else None
    lengths = _lengths(k, tokens.mask)
    new = extend_cache(cache, k, v, lengths)
    if length > 1 or dropout:
        o = chunked_attention(q, k, v, cached_k=cache.k, cached_v=cache.v, cached_length=cache.count, **options)
    else:  # reads the slots where they lie
        held, own = (cache, (k, v)) if batch == 1 else (new, None)
        o = attend_newest(q, held, own, chunk_size=tokens.slots, window=None, accum_dtype=jnp.float32, drop=None)
    return o, new if tokens.keep else None


def _first_cache(k, v, tokens: Tokens) -> AttentionCache:
    if tokens.mask is None:
        return full_cache(k, v, tokens.slots)
    return extend_cache(empty_cache(k, v, tokens.slots), k, v, _lengths(k, tokens.mask))


def _lengths(k, mask) -> jax.Array:
    return jnp.full(k.shape[0], k.shape[1], jnp.int32) if mask is None else jnp.sum(mask, axis=1, dtype=jnp.int32)
