"""Attention inside chunks: primitives and the module that chooses between one parallel call and the streaming cache.

Positions enter only through rotary angles, and only angle differences matter. Where attention never leaves an
absolute chunk the angles are taken at `position mod chunk_size`: the same function, and exact however long the stream.
"""

from functools import partial

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Int32

from megalodon_jax.layers.dropout import require_dropout_key
from megalodon_jax.layers.ring import check_cache, empty_cache, extend_cache, full_cache
from megalodon_jax.layers.rotary import RotaryEmbedding
from megalodon_jax.layers.streaming import attend_cached, attend_newest
from megalodon_jax.remat import of_operation
from megalodon_jax.types import AttentionCache
from pallas_kernels import chunked_attention, normalized_rotary
from reference.chunked_attention import masked_attention
from reference.dropout import AttentionDropout, DropoutMode
from reference.gating import Gate, activated, gated
from reference.segments import chunk_positions


def attention_single_chunk(
    q: Float[Array, "B Q H K"],
    k: Float[Array, "B S H K"],
    v: Float[Array, "B S H V"],
    kv_mask: Bool[Array, "B S"] | None = None,
    accum_dtype=jnp.float32,
    causal: bool = True,
    dropout_rate: float = 0.0,
    deterministic: bool = True,
    key=None,
) -> Float[Array, "B Q H V"]:
    """Dense attention, scale 1, softmax in accum_dtype; the causal mask aligns the ends of queries and keys.

    A query without an allowed key gives 0, and so does an empty q or k.

    Raises:
        ValueError: dropout without a key.
    """
    require_dropout_key((dropout_rate,), deterministic, key)
    queries, keys = q.shape[1], k.shape[1]
    if queries == 0 or keys == 0:
        return jnp.zeros((*q.shape[:3], v.shape[-1]), q.dtype)
    allowed = jnp.ones((q.shape[0], 1, queries, keys), bool)
    if causal:
        allowed = allowed & jnp.tril(jnp.ones((queries, keys), bool), keys - queries)
    if kv_mask is not None:
        allowed = allowed & kv_mask[:, None, None]
    drop = _attention_dropout(dropout_rate, deterministic, key)
    return masked_attention(q, k, v, allowed, softmax_dtype=jnp.dtype(accum_dtype), drop=drop)


def attention_multi_chunk(
    q: Float[Array, "B L H K"],
    k: Float[Array, "B L H K"],
    v: Float[Array, "B L H V"],
    chunk_size: int,
    start_index: Int[Array, ""] | int,
    rotary: RotaryEmbedding,
    mask: Bool[Array, "B L"] | None = None,
    accum_dtype=jnp.float32,
    dropout_rate: float = 0.0,
    deterministic: bool = True,
    key=None,
) -> Float[Array, "B L H V"]:
    """Rotate from `start_index` on, then attend inside chunks counted from the start of this call.

    Raises:
        ValueError: dropout without a key.
    """
    require_dropout_key((dropout_rate,), deterministic, key)
    if q.shape[1] == 0:
        return jnp.zeros((*q.shape[:3], v.shape[-1]), q.dtype)
    q, k = rotary(q, k, start_index)
    return chunked_attention(
        q, k, v, chunk_size=chunk_size, mask=mask, softmax_dtype=accum_dtype,
        dropout_rate=0.0 if deterministic else dropout_rate, dropout_key=key,
    )  # fmt: skip


def _attention_dropout(rate: float, deterministic: bool, key, mode: DropoutMode = "post_softmax"):
    return None if deterministic or rate == 0.0 else AttentionDropout(rate, key, mode)


class ChunkedAttention(eqx.Module):
    """Rotary attention with an optional ring-buffer cache.

    Without cache: block-diagonal over chunks of `chunk_size`. With cache or `return_cache`: the same over absolute
    chunks, however the stream is cut into calls; or, when `max_cache_len` differs from `chunk_size` or
    `cache_unbounded` is set, every query sees exactly its last `max_cache_len` keys.
    """

    rotary: RotaryEmbedding
    num_heads: int = eqx.field(static=True)
    head_dim: int = eqx.field(static=True)
    value_head_dim: int = eqx.field(static=True)
    chunk_size: int = eqx.field(static=True)
    max_cache_len: int = eqx.field(static=True)
    cache_unbounded: bool = eqx.field(static=True)
    attention_dropout: float = eqx.field(static=True)
    accum_dtype: jnp.dtype = eqx.field(static=True)
    dropout_mode: DropoutMode = eqx.field(static=True)

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        value_head_dim: int,
        chunk_size: int,
        rope_base: float = 10000.0,
        max_cache_len: int | None = None,
        cache_unbounded: bool = False,
        attention_dropout: float = 0.0,
        accum_dtype=jnp.float32,
        *,
        key=None,
        interleaved: bool = False,
        dropout_mode: DropoutMode = "post_softmax",
    ):
        self.rotary = RotaryEmbedding(head_dim, rope_base, interleaved)
        self.num_heads, self.head_dim, self.value_head_dim = num_heads, head_dim, value_head_dim
        self.chunk_size = chunk_size
        self.max_cache_len = chunk_size if max_cache_len is None or max_cache_len < 0 else max_cache_len
        self.cache_unbounded, self.attention_dropout = cache_unbounded, attention_dropout
        self.accum_dtype, self.dropout_mode = jnp.dtype(accum_dtype), dropout_mode

    @property
    def sliding(self) -> bool:
        """Does the cache slide instead of starting anew at every absolute chunk boundary?"""
        return self.cache_unbounded or self.max_cache_len != self.chunk_size

    def __call__(
        self,
        q: Float[Array, "B L H K"],
        k: Float[Array, "B L H K"],
        v: Float[Array, "B L H V"],
        cache: AttentionCache | None = None,
        mask: Bool[Array, "B L"] | None = None,
        return_cache: bool = False,
        deterministic: bool = True,
        key=None,
        *,
        segment_ids: Int[Array, "B L"] | None = None,
        position_ids: Int[Array, "B L"] | None = None,
    ) -> tuple[Float[Array, "B L H V"], AttentionCache | None, Int32[Array, " B"]]:
        """Output, the new cache if asked for, and each row's position after the call. q and k are not yet rotated.

        With cache or `return_cache` a mask says which tokens there are: those of a row, then padding behind them.

        Raises:
            ValueError: dropout without a key, a cache that does not fit q and v, or segment_ids beside one.
        """
        positions = self._positions(q.shape[1], cache, return_cache, segment_ids, position_ids)
        q, k = self.rotary.rotate(q, k, positions)
        return self._attend(q, k, v, None, cache, mask, return_cache, deterministic, key, segment_ids)

    def from_projection(
        self,
        z: Float[Array, "B L H K"],
        v: Float[Array, "B L H V"],
        scale: Float32[Array, "2 H K"],
        shift: Float32[Array, "2 H K"],
        norm_eps: float,
        cache: AttentionCache | None = None,
        mask: Bool[Array, "B L"] | None = None,
        return_cache: bool = False,
        deterministic: bool = True,
        key=None,
        *,
        bias: Float32[Array, "H K"] | None = None,
        gate: Gate | None = None,
        segment_ids: Int[Array, "B L"] | None = None,
        position_ids: Int[Array, "B L"] | None = None,
        scale_offset: float = 0.0,
        scale_factor: float = 1.0,
    ) -> tuple[Float[Array, "B L H V"], AttentionCache | None, Int32[Array, " B"]]:
        """The same with the queries and keys that `normalized_rotary` makes of z and its bias, and with what the gate
        says of v and of the result; errors as there and above.
        """
        positions = self._positions(z.shape[1], cache, return_cache, segment_ids, position_ids)
        q, k = normalized_rotary(
            z, scale, shift, bias,
            positions=positions, eps=norm_eps, base=self.rotary.base, interleaved=self.rotary.interleaved,
            scale_offset=scale_offset, scale_factor=scale_factor,
        )  # fmt: skip
        q, k = of_operation(q), of_operation(k)
        return self._attend(q, k, v, gate, cache, mask, return_cache, deterministic, key, segment_ids)

    def _positions(self, length: int, cache: AttentionCache | None, return_cache: bool, segment_ids, position_ids):
        """Positions that the rotary angles are taken at, [L] or [B, L]."""
        if position_ids is not None:
            return position_ids
        if segment_ids is not None:
            return chunk_positions(length, self.chunk_size, segment_ids)
        index = jnp.arange(length, dtype=jnp.int32)
        positions = index if cache is None else cache.count[:, None] + index
        return positions if self.sliding and (cache is not None or return_cache) else positions % self.chunk_size

    def _attend(self, q, k, v, gate, cache, mask, return_cache, deterministic, key, segment_ids):
        require_dropout_key((self.attention_dropout,), deterministic, key)
        batch, length = q.shape[:2]
        lengths = jnp.full(batch, length, jnp.int32) if mask is None else jnp.sum(mask, axis=1, dtype=jnp.int32)
        attend = partial(
            chunked_attention, q, k, v, chunk_size=self.chunk_size, mask=mask, softmax_dtype=self.accum_dtype,
            dropout_rate=0.0 if deterministic else self.attention_dropout, dropout_key=key,
            dropout_mode=self.dropout_mode, **({} if gate is None else {"v_activation": "silu", **gate._asdict()}),
        )  # fmt: skip
        if cache is None and not return_cache:
            return attend(segment_ids=segment_ids), None, lengths

        if segment_ids is not None:
            raise ValueError("segment_ids do not go together with a cache: a stream is one document.")
        v = v if gate is None else activated(v, gate.v_bias)
        starts = cache is None
        cache = empty_cache(k, v, self.max_cache_len) if cache is None else check_cache(cache, k, v)
        alike = starts and mask is None
        new_cache = full_cache(k, v, self.max_cache_len) if alike else extend_cache(cache, k, v, lengths)
        if starts and not self.sliding:
            return attend(), new_cache, lengths
        other = {
            "chunk_size": self.chunk_size,
            "window": self.max_cache_len if self.sliding else None,
            "accum_dtype": self.accum_dtype,
            "drop": _attention_dropout(self.attention_dropout, deterministic, key, self.dropout_mode),
        }
        on_grid = not self.sliding and cache.k.shape[1] == self.chunk_size  # slot 0 holds the first token of a chunk
        if length > 1 and on_grid:
            out = attend(cached_k=cache.k, cached_v=cache.v, cached_length=cache.count % self.chunk_size)
            return out, new_cache if return_cache else None, new_cache.count
        if length == 1:
            one_row = q.shape[0] == 1
            out = attend_newest(q, *((cache, (k, v)) if one_row else (new_cache, None)), **other)
        else:
            out = attend_cached(q, k, v, cache, lengths=lengths, **other)
        out = out if gate is None or gate.gate is None else gated(out, gate.gate, gate.gate_bias)
        return out, new_cache if return_cache else None, new_cache.count


__all__ = ["ChunkedAttention", "attention_multi_chunk", "attention_single_chunk"]
