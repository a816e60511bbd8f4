"""What the baselines have in common: a pre-norm transformer without a head.

    x = embed[ids] (+ position_embed[positions])
    per block:   x = x + attn(attn_norm(x));   x = x + ffn(ffn_norm(x))
    hidden = norm(x)

Parts are those of `llama` and `gpt`. Dropout is that of the embeddings and of what both halves of a block add.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from megalodon_jax.baselines.attention import Tokens
from megalodon_jax.baselines.configs import GPTConfig, LlamaConfig
from megalodon_jax.layers.dropout import dropout, require_dropout_key, split
from megalodon_jax.padding import tokens_first
from megalodon_jax.types import AttentionCache, LayerCache, ModelCache
from megalodon_jax.validation import check_ids, check_mask, is_all_true, require, require_in_range, require_room
from reference.segments import run_positions


class Block(eqx.Module):
    """Attention and feed-forward layer, each behind its norm.

    `attn(x, tokens, cache, deterministic, key) -> (y, new cache)`, `ffn(x) -> y`.
    """

    attn_norm: Any
    attn: Any
    ffn_norm: Any
    ffn: Any
    dropout: float = eqx.field(static=True)

    def __call__(
        self, x: Float[Array, "B L D"], tokens: Tokens, cache: AttentionCache | None, deterministic: bool, key
    ) -> tuple[Float[Array, "B L D"], AttentionCache | None]:
        attention_key, first_key, second_key = split(key, 3)
        y, cache = self.attn(self.attn_norm(x), tokens, cache, deterministic, attention_key)
        x = x + dropout(y, self.dropout, deterministic, first_key)
        return x + dropout(self.ffn(self.ffn_norm(x)), self.dropout, deterministic, second_key), cache


class Backbone(eqx.Module):
    """Embedding, blocks and final norm."""

    embed: eqx.nn.Embedding
    position_embed: eqx.nn.Embedding | None
    layers: tuple[Block, ...]
    norm: Any
    dropout: float = eqx.field(static=True)
    config: LlamaConfig | GPTConfig = eqx.field(static=True)

    def __call__(
        self,
        input_ids: Int[Array, "B L"],
        attention_mask: Bool[Array, "B L"] | None = None,
        cache: ModelCache | None = None,
        return_cache: bool = False,
        deterministic: bool = True,
        key=None,
        *,
        segment_ids: Int[Array, "B L"] | None = None,
        checks: bool = False,
    ) -> tuple[Float[Array, "B L D"], ModelCache | None]:
        """Hidden states [B, L, D] in compute_dtype and, if asked for, the new cache.

        The cache has as many slots as a sequence can have tokens, in every call: one token is one compiled program. In
        traced code without `checks` a row gives NaN from where it passes them.

        Args:
            input_ids: token ids in [0, vocab_size).
            attention_mask: True = valid. Masked tokens are not attended. In a call with a cache, or that returns one,
                they are not there at all, wherever they stand; in others positions count them.
            cache: state of the tokens before these.
            return_cache: also return the state after these tokens.
            deterministic: False turns dropout on.
            key: PRNG key for dropout.
            segment_ids: packed documents, 0 = padding; every run is computed as if alone. Not with a cache.
            checks: check values inside traced code too (host callbacks).

        Raises:
            ValueError: wrong shape, empty input, token id out of range, more tokens than a sequence can have (padding
                included), a cache that does not fit, segment_ids with a cache, dropout without a key.
            TypeError: input_ids not integer or attention_mask not bool.
        """
        require_dropout_key((self.dropout,), deterministic, key)
        streams = cache is not None or return_cache
        ids = self._checked(input_ids, attention_mask, cache, streams, segment_ids, checks)
        mask = None if attention_mask is None or is_all_true(attention_mask) else attention_mask
        restore: Callable[[Array], Array] = lambda a: a  # noqa: E731
        if mask is not None and streams:
            ids, mask, restore = tokens_first(ids, mask)
        caches = (None,) * len(self.layers) if cache is None else tuple(c.attn for c in cache.layer_caches if c)
        tokens = self._tokens(ids, mask, caches[0], segment_ids, return_cache)
        embed_key, *keys = split(key, len(self.layers) + 1)
        x = dropout(self._embedded(ids, tokens), self.dropout, deterministic, embed_key)
        new_caches = []
        for layer, layer_cache, layer_key in zip(self.layers, caches, keys, strict=True):
            x, new = layer(x, tokens, layer_cache, deterministic, layer_key)
            new_caches.append(new)
        x = self.norm(x)
        if caches[0] is not None:
            more = ids.shape[1] if mask is None else jnp.sum(mask, axis=1, dtype=jnp.int32)
            full = caches[0].count + more > tokens.slots
            x = jnp.where(full[:, None, None], jnp.nan, x).astype(x.dtype)
        layers = tuple(LayerCache(attn=new, position=new.count) for new in new_caches if new is not None)
        return restore(x), ModelCache(layers) if return_cache else None

    def _embedded(self, ids: Int[Array, "B L"], tokens: Tokens) -> Float[Array, "B L D"]:
        x = self.embed.weight[ids].astype(self.config.compute_dtype)
        if self.position_embed is None:
            return x
        return x + self.position_embed.weight.at[tokens.positions].get(mode="clip").astype(x.dtype)

    def _tokens(self, ids, mask, cache: AttentionCache | None, segment_ids, keep: bool) -> Tokens:
        positions = jnp.arange(ids.shape[1], dtype=jnp.int32)
        if cache is not None:
            positions = cache.count[:, None] + positions
        if segment_ids is not None:
            segment_ids = segment_ids.astype(jnp.int32)
            positions = run_positions(segment_ids)
        return Tokens(positions, mask, segment_ids, self.config.max_stream_len, keep)

    def _checked(self, ids, mask, cache, streams: bool, segment_ids, checks: bool) -> jax.Array:
        """The ids, after every check that shapes, dtypes and (where concrete, or with `checks`) values allow."""
        check_ids("input_ids", ids)
        check_mask(mask, ids)
        most = self.config.max_stream_len
        if ids.shape[1] > most:
            raise ValueError(f"input_ids have {ids.shape[1]} tokens in a row, the model takes {most} at most")
        ids = require_in_range("input_ids", ids.astype(jnp.int32), self.config.vocab_size, checks)
        if segment_ids is not None:
            check_ids("segment_ids", segment_ids, like=ids)
            if streams:
                raise ValueError("segment_ids cannot be used with a cache: packed documents do not stream")
            message = "segment_ids must not be negative (0 = padding)"
            ids = require(segment_ids, lambda s: s < 0, message, checks, on=ids)
        if cache is None:
            return ids
        self._require_fit(cache, ids.shape[0])
        return require_room(ids, cache, ids.shape[1], checks, most)

    def _require_fit(self, cache: ModelCache, batch: int) -> None:
        if len(cache.layer_caches) != len(self.layers):
            raise ValueError(f"the cache has {len(cache.layer_caches)} layers, the model {len(self.layers)}")
        config = self.config
        shape = (batch, config.max_stream_len, config.num_heads, config.head_dim)
        for layer in cache.layer_caches:
            if layer is None or layer.attn is None:
                raise ValueError("the cache has a layer without keys: it is not of this model")
            for array in (layer.attn.k, layer.attn.v):
                if array.shape != shape or array.dtype != config.compute_dtype:
                    raise ValueError(
                        f"the cache is not of this model: keys and values must be {config.compute_dtype.name} {shape}, "
                        f"got {array.dtype.name} {array.shape}"
                    )
