"""The state of a stream: make one, cut it, pick rows of it."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Int

from megalodon_jax.config import MegalodonConfig
from megalodon_jax.layers.ring import resize_ring
from megalodon_jax.types import AttentionCache, EMAState, LayerCache, ModelCache, NormState
from reference.timestep_norm import fresh_state


def init_cache(
    config: MegalodonConfig,
    batch_size: int,
    dtype=None,
    *,
    allocate_kv: bool = False,
    allocate_norm: bool = False,
    allocate_ema: bool = False,
) -> ModelCache:
    """The cache of a stream that has not started; all choices of what to allocate mean the same to the model.

    Args:
        config: sizes of the model.
        batch_size: B.
        dtype: of keys and values, compute_dtype if None; a model takes those of its own compute_dtype only.
        allocate_kv, allocate_norm, allocate_ema: allocate that part in every layer instead of leaving it None.

    Raises:
        ValueError: batch_size no integer, or negative.
    """
    if not isinstance(batch_size, int | np.integer) or batch_size < 0:
        raise ValueError(f"batch_size must be an integer from 0 on, got {batch_size!r}")
    dtype = config.compute_dtype if dtype is None else dtype
    slots = (batch_size, config.effective_max_cache_len, config.num_heads)

    def layer() -> LayerCache:
        attention = AttentionCache(
            jnp.zeros((*slots, config.head_dim), dtype),
            jnp.zeros((*slots, config.value_head_dim), dtype),
            jnp.zeros(batch_size, jnp.int32),
        )
        ema = EMAState(jnp.zeros((batch_size, config.model_dim, config.cema_ndim), jnp.complex64))
        return LayerCache(
            attention if allocate_kv else None,
            NormState(*fresh_state(batch_size, config.norm_num_groups)) if allocate_norm else None,
            ema if allocate_ema else None,
            jnp.zeros(batch_size, jnp.int32),
        )

    final_norm = NormState(*fresh_state(batch_size, config.norm_num_groups))
    return ModelCache(tuple(layer() for _ in range(config.num_layers)), final_norm)


def trim_cache(cache: ModelCache, max_len: int) -> ModelCache:
    """Keep at most the `max_len` newest keys and values of every layer; everything else is unchanged.

    The cache stays that size: from here on a query sees at most its last `max_len` keys, itself included. A layer that
    holds no keys has nothing to cut: a stream that is to begin with a small ring needs `init_cache(allocate_kv=True)`.

    Raises:
        ValueError: max_len not a positive integer.
    """
    if not isinstance(max_len, int | np.integer) or max_len <= 0:
        raise ValueError(f"max_len must be a positive integer, got {max_len!r}")

    def trim(layer: LayerCache | None) -> LayerCache | None:
        if layer is None or layer.attn is None or layer.attn.k.shape[1] <= max_len:
            return layer
        return LayerCache(resize_ring(layer.attn, max_len), layer.norm, layer.ema, layer.position)

    trimmed = ModelCache(tuple(trim(layer) for layer in cache.layer_caches), cache.final_norm)
    return jax.tree.map(jnp.copy, trimmed)  # decode_step uses up the arrays it is given


def index_cache(cache: ModelCache, indices: Int[Array, " R"]) -> ModelCache:
    """Select, reorder or repeat rows of the batch.

    Raises:
        ValueError: indices not of one dimension, or concrete and outside the batch.
        TypeError: indices that are no integers.
    """
    indices = jnp.asarray(indices)
    if indices.ndim != 1:
        raise ValueError(f"indices must have shape [rows], got {indices.shape}")
    if not jnp.issubdtype(indices.dtype, jnp.integer):
        raise TypeError(f"indices must be integers, got {indices.dtype}")
    batch = max((leaf.shape[0] for leaf in jax.tree.leaves(cache)), default=0)
    if not isinstance(indices, Tracer) and np.any((np.asarray(indices) < 0) | (np.asarray(indices) >= batch)):
        raise ValueError(f"indices must be in [0, {batch}), got {np.asarray(indices).tolist()}")
    return jax.tree.map(lambda leaf: leaf[indices], cache)
