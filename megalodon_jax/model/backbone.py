"""Model without a head: TimestepNorm(blocks(embed[ids]))."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from megalodon_jax.config import MegalodonConfig
from megalodon_jax.layers.complex_ema import each_layer, stacked_coefficients
from megalodon_jax.layers.dropout import dropout, require_dropout_key, split
from megalodon_jax.layers.timestep_norm import TimestepNorm, time_norm
from megalodon_jax.model.block import MegalodonBlock
from megalodon_jax.padding import tokens_first
from megalodon_jax.remat import rematerialised
from megalodon_jax.types import ModelCache
from megalodon_jax.utils import get_initializer, vocabulary_mode
from megalodon_jax.validation import (
    check_ids,
    check_mask,
    full_is_nan,
    is_all_true,
    require,
    require_in_range,
    require_room,
)


class MegalodonModel(eqx.Module):
    """Embedding, blocks and final norm."""

    embed: eqx.nn.Embedding
    layers: tuple[MegalodonBlock, ...]
    norm: TimestepNorm
    config: MegalodonConfig = eqx.field(static=True)

    def __init__(self, config: MegalodonConfig, *, key):
        self.config = config
        _, embed_key, _, layers_key = jax.random.split(key, 4)
        shape = (config.vocab_size, config.model_dim)
        mode = vocabulary_mode(config.init_mode)
        draw = jax.random.normal if mode == "none" else get_initializer(mode, config.model_dim)
        self.embed = eqx.nn.Embedding(weight=draw(embed_key, shape, config.param_dtype))
        keys = split(layers_key, config.num_layers) if config.num_layers else ()
        self.layers = tuple(MegalodonBlock(config, i, key=layer_key) for i, layer_key in enumerate(keys))
        c = config
        self.norm = time_norm(c.model_dim, c.norm_num_groups, c.norm_eps, c.norm_affine, c.variant)

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
        position_ids: Int[Array, "B L"] | None = None,
        detach_cache: bool = True,
        checks: bool = False,
    ) -> tuple[Float[Array, "B L D"], ModelCache | None]:
        """Hidden states [B, L, D] in compute_dtype and, if asked for, the new cache.

        Without cache and `return_cache` attention is block-diagonal over chunks counted from index 0, in every mode of
        the cache. A call with one of them streams: it gives what one call on the whole stream would have given.

        Args:
            input_ids: token ids in [0, vocab_size).
            attention_mask: True = valid. Masked tokens do not update the norms' statistics, enter the EMA as zero, and
                are not attended. In a streaming call they are not there at all, wherever they stand: each row gives
                what its own tokens would give alone, and hidden states of masked tokens mean nothing.
            cache: state of the tokens before these.
            return_cache: also return the state after these tokens; of layers only with `deterministic`, or with
                `detach_cache=False`.
            deterministic: False turns dropout on (and, with config.use_checkpoint and no config.remat, the
                rematerialisation of blocks).
            key: PRNG key for dropout.
            segment_ids: packed documents, 0 = padding; every run is computed as if alone. Not with a cache.
            position_ids: rotary positions; run-local by default.
            detach_cache: False keeps gradients through the returned cache, and returns it in training too:
                backpropagation through time, as far as calls are chained in one differentiated function.
            checks: check values inside traced code too (host callbacks).

        Raises:
            ValueError: wrong shape, empty input, token id out of range, cache that does not fit or whose counters the
                tokens would overflow, segment_ids with a cache, dropout without a key.
            TypeError: input_ids not integer or attention_mask not bool.
        """
        config = self.config
        require_dropout_key((config.dropout, config.attention_dropout, config.hidden_dropout), deterministic, key)
        input_ids, attention_mask = self._checked(
            input_ids, attention_mask, cache, return_cache, segment_ids, position_ids, checks
        )
        segment_ids, position_ids = (
            None if a is None else jnp.asarray(a, jnp.int32) for a in (segment_ids, position_ids)
        )
        caches = (None,) * len(self.layers) if cache is None else cache.layer_caches
        streams, keep = cache is not None or return_cache, return_cache and (deterministic or not detach_cache)
        restore = None
        if attention_mask is not None and streams:
            input_ids, attention_mask, restore = tokens_first(input_ids, attention_mask)
        x = self._embed(input_ids)
        if config.variant == "original" and key is not None:
            key, embed_key = jax.random.split(key)
            x = dropout(x, config.dropout, deterministic, embed_key)
        run = rematerialised(MegalodonBlock.__call__, config.remat_policy(deterministic))
        new_caches = []
        scanned = self.config.scan_layers and cache is None and not return_cache and len(self.layers) > 1
        if scanned:
            x = self._scan_layers(x, attention_mask, deterministic, key, segment_ids, position_ids)
        emas = (None,) * len(self.layers)
        if self.layers and not scanned and x.shape[1] > 1:  # for a single step XLA forms them where they are read
            emas = each_layer(self._coefficients())
        for layer, layer_cache, layer_key, coefficients in (
            () if scanned else zip(self.layers, caches, split(key, len(self.layers)), emas, strict=True)
        ):
            x, new = run(
                layer, x, layer_cache, attention_mask, streams, deterministic, layer_key,
                segment_ids=segment_ids, position_ids=position_ids, coefficients=coefficients,
            )  # fmt: skip
            new_caches.append(new if keep else None)
        final = None if cache is None or cache.final_norm is None else full_is_nan(cache.final_norm, x.shape[1])
        x, final = self.norm(x, final, attention_mask, segment_ids=segment_ids)
        x = x if restore is None else restore(x)
        if not return_cache:
            return x, None
        new_cache = ModelCache(tuple(new_caches), final)
        return x, jax.tree.map(lax.stop_gradient, new_cache) if detach_cache else new_cache

    def _coefficients(self):
        return stacked_coefficients([layer.attn.cema for layer in self.layers])

    def _scan_layers(self, x, mask, deterministic: bool, key, segment_ids, position_ids):
        """All layers as one scanned block: parameters stacked here, the parameter tree outside as it is."""
        leaves = [jax.tree.leaves(layer) for layer in self.layers]
        structure = jax.tree.structure(self.layers[0])  # layers differ in nothing static but layer_id and alpha
        scales = None if self.layers[0].ffn.alpha is None else jnp.asarray([layer.ffn.alpha for layer in self.layers])
        keys = None if key is None else jax.random.split(key, len(self.layers))

        def body(x, inputs):
            parameters, layer_key, scale, coefficients = inputs
            layer = jax.tree.unflatten(structure, parameters)
            y, _ = layer(
                x, None, mask, False, deterministic, layer_key,
                segment_ids=segment_ids, position_ids=position_ids, scale=scale, coefficients=coefficients,
            )  # fmt: skip
            return y, None

        body = rematerialised(body, self.config.remat_policy(deterministic))
        stacked = [jnp.stack(group) for group in zip(*leaves, strict=True)]
        return lax.scan(body, x, (stacked, keys, scales, self._coefficients()))[0]

    def _embed(self, input_ids: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        x = self.embed.weight[input_ids]
        if self.config.scale_emb:
            x = x * jnp.asarray(math.sqrt(self.config.model_dim), x.dtype)
        if self.config.pad_token_id is not None and self.config.variant == "hf":
            x = jnp.where((input_ids == self.config.pad_token_id)[..., None], 0, x).astype(x.dtype)
        return x.astype(self.config.compute_dtype)

    def _checked(self, ids, mask, cache, return_cache, segment_ids, position_ids, checks: bool):
        """The ids and the mask (None if known to be all True), after every check that shapes, dtypes and (where
        concrete, or with `checks`) values allow."""
        check_ids("input_ids", ids)
        check_mask(mask, ids)
        ids = ids.astype(jnp.int32)
        for name, packed in (("segment_ids", segment_ids), ("position_ids", position_ids)):
            if packed is None:
                continue
            check_ids(name, packed, like=ids)
            if cache is not None or return_cache:
                raise ValueError(f"{name} cannot be used with a cache: packed documents do not stream")
        ids = require_in_range("input_ids", ids, self.config.vocab_size, checks)
        if segment_ids is not None:
            message = "segment_ids must not be negative (0 = padding)"
            ids = require(segment_ids, lambda s: s < 0, message, checks, on=ids)
        if cache is not None:
            if len(cache.layer_caches) != len(self.layers):
                raise ValueError(f"Cache has {len(cache.layer_caches)} layer entries, expected {len(self.layers)}")
            ids = require_room(ids, cache, ids.shape[1], checks)
        return ids, None if mask is None or is_all_true(mask) else mask
