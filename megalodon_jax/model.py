"""Block, model and language model.

block   y = x + FFN(LayerNorm(attention_half(x)))      the residual starts at the block input: "two-hop"
model   TimestepNorm(blocks(embed[ids]))
head    logits = hidden @ weight.T                     weight = the embedding when tied
"""

import math
from collections.abc import Callable
from typing import Any, Literal, overload

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Int32

from megalodon_jax import loss as losses
from megalodon_jax.config import MegalodonConfig
from megalodon_jax.layers.attention import MegalodonAttention
from megalodon_jax.layers.dropout import require_dropout_key, split
from megalodon_jax.layers.feedforward import NormalizedFFN
from megalodon_jax.layers.timestep_norm import TimestepNorm
from megalodon_jax.ops import matmul_3d_weight
from megalodon_jax.padding import tokens_first
from megalodon_jax.types import LayerCache, ModelCache
from megalodon_jax.utils import get_initializer
from megalodon_jax.validation import check_ids, check_mask, is_all_true, require, require_in_range, require_room


class MegalodonBlock(eqx.Module):
    """Attention half and feed-forward half with the two-hop residual."""

    attn: MegalodonAttention
    ffn: NormalizedFFN
    layer_id: int = eqx.field(static=True)

    def __init__(self, config: MegalodonConfig, layer_id: int, *, key):
        self.layer_id = layer_id
        attention_key, ffn_key = jax.random.split(key)
        shared = {
            "norm_eps": config.norm_eps,
            "norm_affine": config.norm_affine,
            "dropout": config.dropout,
            "hidden_dropout": config.hidden_dropout,
            "param_dtype": config.param_dtype,
            "compute_dtype": config.compute_dtype,
            "accum_dtype": config.accum_dtype,
            "gemm_backend": config.gemm_backend,
            "init_mode": config.init_mode,
        }
        self.attn = MegalodonAttention.with_init(
            config.model_dim, config.z_dim, config.value_dim, config.num_heads, config.cema_ndim, config.chunk_size,
            config.norm_num_groups,
            rope_base=config.effective_rope_base, max_cache_len=config.effective_max_cache_len,
            cache_unbounded=config.cache_unbounded, attention_dropout=config.attention_dropout,
            key=attention_key, **shared,
        )  # fmt: skip
        self.ffn = NormalizedFFN.with_init(
            config.model_dim, config.ffn_hidden_dim,
            swiglu=config.swiglu, rescale=config.rescale_nffn, layer_id=layer_id, key=ffn_key, **shared,
        )  # fmt: skip

    def __call__(
        self,
        x: Float[Array, "B L D"],
        cache: LayerCache | None = None,
        mask: Bool[Array, "B L"] | None = None,
        return_cache: bool = False,
        deterministic: bool = True,
        key=None,
        *,
        segment_ids: Int[Array, "B L"] | None = None,
        position_ids: Int[Array, "B L"] | None = None,
        scale: Float[Array, ""] | None = None,
    ) -> tuple[Float[Array, "B L D"], LayerCache | None]:
        """Block output and, if asked for, the new cache; `scale` replaces the feed-forward half's own."""
        attention_key, ffn_key = split(key, 2)
        middle, new_cache = self.attn(
            x, cache, mask, return_cache, deterministic, attention_key,
            segment_ids=segment_ids, position_ids=position_ids,
        )  # fmt: skip
        return self.ffn(middle, x, deterministic, ffn_key, scale=scale), new_cache


@eqx.filter_checkpoint
def _rematerialised(layer: MegalodonBlock, *args, **kwargs):
    return layer(*args, **kwargs)


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
        draw = jax.random.normal if config.init_mode == "none" else get_initializer(config.init_mode, config.model_dim)
        self.embed = eqx.nn.Embedding(weight=draw(embed_key, shape, config.param_dtype))
        keys = split(layers_key, config.num_layers) if config.num_layers else ()
        self.layers = tuple(MegalodonBlock(config, i, key=layer_key) for i, layer_key in enumerate(keys))
        self.norm = TimestepNorm(config.model_dim, config.norm_num_groups, config.norm_eps, config.norm_affine)

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
            deterministic: False turns dropout on (and, with config.use_checkpoint, rematerialisation).
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
        rematerialise = config.use_checkpoint and not deterministic
        new_caches = []
        scanned = self.config.scan_layers and cache is None and not return_cache and len(self.layers) > 1
        if scanned:
            x = self._scan_layers(x, attention_mask, deterministic, key, segment_ids, position_ids)
        for layer, layer_cache, layer_key in (
            () if scanned else zip(self.layers, caches, split(key, len(self.layers)), strict=True)
        ):
            run = _rematerialised if rematerialise else MegalodonBlock.__call__
            x, new = run(
                layer, x, layer_cache, attention_mask, streams, deterministic, layer_key,
                segment_ids=segment_ids, position_ids=position_ids,
            )  # fmt: skip
            new_caches.append(new if keep else None)
        final = None if cache is None else cache.final_norm
        x, final = self.norm(x, final, attention_mask, segment_ids=segment_ids)
        x = x if restore is None else restore(x)
        if not return_cache:
            return x, None
        new_cache = ModelCache(tuple(new_caches), final)
        return x, jax.tree.map(lax.stop_gradient, new_cache) if detach_cache else new_cache

    def _scan_layers(self, x, mask, deterministic: bool, key, segment_ids, position_ids):
        """All layers as one scanned block: parameters stacked here, the parameter tree outside as it is."""
        leaves = [jax.tree.leaves(layer) for layer in self.layers]
        structure = jax.tree.structure(self.layers[0])  # layers differ in nothing static but layer_id and alpha
        scales = jnp.asarray([layer.ffn.alpha for layer in self.layers]) if self.config.rescale_nffn else None
        keys = None if key is None else jax.random.split(key, len(self.layers))

        def body(x, inputs):
            parameters, layer_key, scale = inputs
            layer = jax.tree.unflatten(structure, parameters)
            y, _ = layer(
                x, None, mask, False, deterministic, layer_key,
                segment_ids=segment_ids, position_ids=position_ids, scale=scale,
            )  # fmt: skip
            return y, None

        if self.config.use_checkpoint and not deterministic:
            body = jax.checkpoint(body)
        stacked = [jnp.stack(group) for group in zip(*leaves, strict=True)]
        return lax.scan(body, x, (stacked, keys, scales))[0]

    def _embed(self, input_ids: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        x = self.embed.weight[input_ids]
        if self.config.scale_emb:
            x = x * jnp.asarray(math.sqrt(self.config.model_dim), x.dtype)
        if self.config.pad_token_id is not None:
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


class MegalodonForCausalLM(eqx.Module):
    """Language model: `MegalodonModel` and an output head, tied to the embedding where `config.tied`."""

    model: MegalodonModel
    lm_head: eqx.nn.Linear | None
    tied: bool = eqx.field(static=True)
    config: MegalodonConfig = eqx.field(static=True)

    def __init__(self, config: MegalodonConfig, *, key):
        self.config, self.tied = config, config.tied
        if self.tied:
            self.model, self.lm_head = MegalodonModel(config, key=key), None
            return
        model_key, head_key, init_key = jax.random.split(key, 3)
        self.model = MegalodonModel(config, key=model_key)
        width, dtype = config.effective_output_size, config.param_dtype
        head = eqx.nn.Linear(config.model_dim, width, use_bias=False, dtype=dtype, key=head_key)
        if config.init_mode != "none":
            weight = get_initializer(config.init_mode)(init_key, head.weight.shape, dtype)
            head = eqx.tree_at(lambda m: m.weight, head, weight)
        self.lm_head = head

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
    ) -> tuple[Float[Array, "B L V"], ModelCache | None]:
        """Logits [B, L, output_size] in compute_dtype, and the new cache; arguments as in `MegalodonModel`."""
        hidden, new_cache = self.model(
            input_ids, attention_mask, cache, return_cache, deterministic, key,
            segment_ids=segment_ids, position_ids=position_ids, detach_cache=detach_cache, checks=checks,
        )  # fmt: skip
        return self.head(hidden), new_cache

    def head(self, hidden: Float[Array, "*L D"]) -> Float[Array, "*L V"]:
        """Logits of hidden states, in compute_dtype."""
        return self._head()(hidden)

    def _head(self) -> Callable[[Array], Array]:
        """hidden [..., D] -> logits [..., V]; the weight is cast here, once, however often the result is called."""
        config = self.config
        weight = self.model.embed.weight if self.lm_head is None else self.lm_head.weight
        weight = weight.astype(config.compute_dtype)
        return lambda hidden: matmul_3d_weight(
            hidden, weight, config.compute_dtype, config.accum_dtype, config.gemm_backend
        )

    @overload
    def compute_loss(
        self,
        input_ids: Array,
        labels: Array,
        attention_mask: Array | None = None,
        ignore_index: int = -100,
        deterministic: bool = True,
        key=None,
        *,
        segment_ids: Array | None = None,
        position_ids: Array | None = None,
        reduction: losses.Reduction = "mean",
        return_valid_count: Literal[False] = False,
        loss_chunk_size: int | None = None,
        checks: bool = False,
    ) -> Array: ...
    @overload
    def compute_loss(
        self,
        input_ids: Array,
        labels: Array,
        attention_mask: Array | None = None,
        ignore_index: int = -100,
        deterministic: bool = True,
        key=None,
        *,
        segment_ids: Array | None = None,
        position_ids: Array | None = None,
        reduction: losses.Reduction = "mean",
        return_valid_count: Literal[True],
        loss_chunk_size: int | None = None,
        checks: bool = False,
    ) -> tuple[Array, Array]: ...
    def compute_loss(
        self,
        input_ids: Int[Array, "B L"],
        labels: Int[Array, "B L"],
        attention_mask: Bool[Array, "B L"] | None = None,
        ignore_index: int = -100,
        deterministic: bool = True,
        key=None,
        *,
        segment_ids: Int[Array, "B L"] | None = None,
        position_ids: Int[Array, "B L"] | None = None,
        reduction: losses.Reduction = "mean",
        return_valid_count: bool = False,
        loss_chunk_size: int | None = None,
        checks: bool = False,
    ) -> Float[Array, "..."] | tuple[Float[Array, "..."], Int32[Array, ""]]:
        """Next-token cross-entropy in softmax_dtype; `labels` are the ids themselves, the shift happens here.

        Args:
            input_ids: as in the call.
            labels: targets, same shape as input_ids; position t is predicted from position t-1.
            attention_mask: targets at masked positions do not count.
            ignore_index: targets of this value do not count.
            deterministic: False turns dropout on.
            key: PRNG key for dropout.
            segment_ids: packed documents; targets that start a document, or are padding, do not count.
            position_ids: as in the call.
            reduction: "mean" over the targets that count (0 if there is none), "sum", or "none": [B, L-1] with zeros
                where a target does not count.
            return_valid_count: also return how many targets count.
            loss_chunk_size: form logits for this many tokens at a time, never [B, L, V].
            checks: as in the call.

        Raises:
            ValueError: as in the call; labels of another shape, a label that counts out of range, unknown reduction,
                loss_chunk_size not positive.
            TypeError: labels not integer.
        """
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
        if loss_chunk_size is not None and (not isinstance(loss_chunk_size, int) or loss_chunk_size <= 0):
            raise ValueError(f"loss_chunk_size must be a positive int or None, got {loss_chunk_size!r}")
        check_ids("input_ids", input_ids)
        check_ids("labels", labels, like=input_ids)
        hidden, _ = self.model(
            input_ids, attention_mask, None, False, deterministic, key,
            segment_ids=segment_ids, position_ids=position_ids, checks=checks,
        )  # fmt: skip
        targets = labels[:, 1:]
        valid = losses.valid_targets(targets, ignore_index, attention_mask, segment_ids)
        targets = require_in_range("labels", jnp.where(valid, targets, 0), self.config.effective_output_size, checks)
        dtype: Any = self.config.softmax_dtype
        if loss_chunk_size is None or targets.size == 0:
            per_token = losses.token_losses(self._head()(hidden[:, :-1]), targets, dtype)
        else:
            per_token = losses.chunked_token_losses(self._head(), hidden[:, :-1], targets, loss_chunk_size, dtype)
        loss = losses.reduce_losses(per_token, valid, reduction)
        return (loss, jnp.sum(valid, dtype=jnp.int32)) if return_valid_count else loss
