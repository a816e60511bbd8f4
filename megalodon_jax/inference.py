"""Streaming state and generation.

`generate` prefills the prompt in one parallel call, then runs one compiled loop of single-token steps.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Int32

from megalodon_jax.config import MegalodonConfig
from megalodon_jax.layers.streaming import resize_ring
from megalodon_jax.model import MegalodonForCausalLM
from megalodon_jax.precision import cast_linear_weights
from megalodon_jax.types import AttentionCache, EMAState, LayerCache, ModelCache, NormState
from megalodon_jax.validation import require_in_range
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
        dtype: of keys and values, compute_dtype if None.
        allocate_kv, allocate_norm, allocate_ema: allocate that part in every layer instead of leaving it None.
    """
    dtype = config.compute_dtype if dtype is None else dtype
    slots = (batch_size, config.effective_max_cache_len, config.num_heads)

    def layer() -> LayerCache:
        attention = AttentionCache(
            jnp.zeros((*slots, config.head_dim), dtype),
            jnp.zeros((*slots, config.value_head_dim), dtype),
            jnp.zeros((), jnp.int32),
        )
        ema = EMAState(jnp.zeros((batch_size, config.model_dim, config.cema_ndim), jnp.complex64))
        return LayerCache(
            attention if allocate_kv else None,
            NormState(*fresh_state(batch_size, config.norm_num_groups)) if allocate_norm else None,
            ema if allocate_ema else None,
        )

    final_norm = NormState(*fresh_state(batch_size, config.norm_num_groups))
    return ModelCache(tuple(layer() for _ in range(config.num_layers)), final_norm)


def trim_cache(cache: ModelCache, max_len: int) -> ModelCache:
    """Keep at most the `max_len` newest keys and values of every layer; everything else is unchanged.

    The cache stays that size: from here on a query sees at most its last `max_len` keys, itself included.

    Raises:
        ValueError: max_len not positive.
    """
    if max_len <= 0:
        raise ValueError(f"max_len must be positive, got {max_len}")

    def trim(layer: LayerCache | None) -> LayerCache | None:
        if layer is None or layer.attn is None or layer.attn.k.shape[1] <= max_len:
            return layer
        return LayerCache(resize_ring(layer.attn, max_len), layer.norm, layer.ema, layer.position)

    return ModelCache(tuple(trim(layer) for layer in cache.layer_caches), cache.final_norm)


def index_cache(cache: ModelCache, indices: Int[Array, " R"]) -> ModelCache:
    """Select, reorder or repeat batch rows; positions and key/value counts are shared by all rows.

    Raises:
        ValueError: concrete indices outside the batch.
    """
    indices = jnp.asarray(indices)
    batch = max((leaf.shape[0] for leaf in jax.tree.leaves(cache) if leaf.ndim > 0), default=0)
    if not isinstance(indices, Tracer) and np.any((np.asarray(indices) < 0) | (np.asarray(indices) >= batch)):
        raise ValueError(f"indices must be in [0, {batch}), got {np.asarray(indices).tolist()}")
    return jax.tree.map(lambda leaf: leaf[indices] if leaf.ndim > 0 else leaf, cache)


def greedy_token(logits: Float[Array, "B V"]) -> Int32[Array, " B"]:
    """Index of the largest logit; the first of equals."""
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def sample_token(
    logits: Float[Array, "B V"],
    key,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Int32[Array, " B"]:
    """Draw one token per row.

    Args:
        logits: unnormalised.
        key: PRNG key; not used at temperature 0.
        temperature: 0 means greedy.
        top_k: keep exactly the k most likely tokens (of equals the lower index first); None or 0 keeps all.
        top_p: of those, keep the most likely ones up to and including the one that crosses this mass.

    Raises:
        ValueError: temperature or top_k negative, top_p outside (0, 1].
    """
    if not temperature >= 0:
        raise ValueError(f"temperature must be >= 0, got {temperature}")
    if top_k is not None and top_k < 0:
        raise ValueError(f"top_k must be >= 0, got {top_k}")
    if temperature == 0:
        return greedy_token(logits)
    if top_p is not None and not 0.0 < top_p <= 1.0:
        raise ValueError(f"top_p must be in (0, 1], got {top_p}")
    kept = min(top_k or logits.shape[-1], logits.shape[-1])
    values, tokens = jax.lax.top_k(logits.astype(jnp.float32) / temperature, kept)
    if top_p is not None and top_p < 1.0:
        mass = jax.nn.softmax(values, axis=-1)
        before = jnp.cumsum(mass, axis=-1) - mass
        values = jnp.where(before > top_p, -jnp.inf, values)
    choice = jax.random.categorical(key, values, axis=-1)
    return jnp.take_along_axis(tokens, choice[:, None], axis=-1)[:, 0].astype(jnp.int32)


def generate(
    model: MegalodonForCausalLM,
    prompt_ids: Int[Array, "B P"],
    max_new_tokens: int,
    key=None,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    bos_token_id: int | None = None,
    eos_token_id: int | None = None,
    attention_mask=None,
    cache: ModelCache | None = None,
    return_cache: bool = False,
) -> tuple[Int[Array, "B T"], ModelCache | None, jax.Array | None]:
    """Continue a prompt by `max_new_tokens` tokens; compiled once per prompt shape and set of options.

    Args:
        model: the language model.
        prompt_ids: token ids; an empty prompt (P = 0) starts from one BOS token, which appears in the output.
        max_new_tokens: number of tokens to add.
        key: PRNG key, needed unless temperature is 0.
        temperature, top_k, top_p: as in `sample_token`.
        bos_token_id: for an empty prompt; config.bos_token_id if None.
        eos_token_id: a row that has produced it is filled up with it; None never stops.
        attention_mask: [B, P] bool; padding only with one new token and no cache.
        cache: state of what came before the prompt.
        return_cache: also return the state after the last new token.

    Returns:
        ids [B, P + max_new_tokens], the cache or None, and the advanced key (the given one at temperature 0).

    Raises:
        ValueError: max_new_tokens not positive, no key, no BOS, padding with a cache or more than one new token, or
            an option that `sample_token` or the model rejects.
    """
    if attention_mask is not None:
        mask = np.asarray(attention_mask)
        if not mask.any(axis=-1).all():
            raise ValueError("attention_mask must contain at least one True per batch element.")
        if not mask.all() and (cache is not None or return_cache or max_new_tokens > 1):
            raise ValueError(
                "Cannot use cache with padded attention_mask. "
                "Pass unpadded prompts, or ask for one token without cache."
            )
    require_in_range("prompt_ids", prompt_ids, model.config.vocab_size, checks=False)
    return generate_jit(
        model, prompt_ids, max_new_tokens, key,
        temperature=temperature, top_k=top_k, top_p=top_p, bos_token_id=bos_token_id, eos_token_id=eos_token_id,
        attention_mask=attention_mask, cache=cache, return_cache=return_cache,
    )  # fmt: skip


@eqx.filter_jit
def generate_jit(
    model: MegalodonForCausalLM,
    prompt_ids: Int[Array, "B P"],
    max_new_tokens: int,
    key=None,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    bos_token_id: int | None = None,
    eos_token_id: int | None = None,
    attention_mask=None,
    cache: ModelCache | None = None,
    return_cache: bool = False,
) -> tuple[Int[Array, "B T"], ModelCache | None, jax.Array | None]:
    """`generate` without the checks that need concrete values."""
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must be non-negative, got {max_new_tokens}")
    if max_new_tokens == 0:
        raise ValueError("max_new_tokens must be > 0: there is nothing to generate")
    config = model.config
    if config.effective_output_size != config.vocab_size:
        raise ValueError(
            f"generation feeds tokens back: output_size {config.effective_output_size} must equal vocab_size "
            f"{config.vocab_size}"
        )
    if not temperature >= 0:
        raise ValueError(f"temperature must be >= 0, got {temperature}")
    if prompt_ids.ndim != 2:
        raise ValueError(f"prompt_ids must have shape [batch, length], got {prompt_ids.shape}")
    if temperature != 0 and key is None:
        raise ValueError("key is required when temperature > 0.")
    if prompt_ids.shape[1] == 0:
        bos = config.bos_token_id if bos_token_id is None else bos_token_id
        if bos is None:
            raise ValueError("an empty prompt needs bos_token_id, and config.bos_token_id is None")
        if not 0 <= bos < config.vocab_size:
            raise ValueError(f"bos_token_id must be in [0, {config.vocab_size}), got {bos}")
        prompt_ids, attention_mask = jnp.full((prompt_ids.shape[0], 1), bos, jnp.int32), None
    # The linear layers cast their weights on every call; here there are many calls.
    model = cast_linear_weights(model, model.config.compute_dtype)

    def draw(logits, key):
        if temperature == 0:
            return greedy_token(logits), key
        key, sub = jax.random.split(key)
        return sample_token(logits, sub, temperature, top_k, top_p), key

    # The streaming path also for a single token: in the sliding modes it is not the training forward. Padding has
    # no streaming path.
    keep = attention_mask is None or return_cache or max_new_tokens > 1
    logits, cache = model(prompt_ids, attention_mask, cache, keep)
    last = jnp.full(prompt_ids.shape[:1], prompt_ids.shape[1] - 1, jnp.int32)
    if attention_mask is not None:
        index = jnp.arange(prompt_ids.shape[1], dtype=jnp.int32)
        last = jnp.max(jnp.where(attention_mask, index, 0), axis=1)
    token, key = draw(jnp.take_along_axis(logits, last[:, None, None], axis=1)[:, 0], key)
    finished = jnp.zeros(token.shape, bool) if eos_token_id is None else token == eos_token_id

    def step(carry, _):
        token, cache, key, finished = carry
        logits, cache = model(token[:, None], cache=cache, return_cache=True)
        token, key = draw(logits[:, -1], key)
        if eos_token_id is not None:
            token = jnp.where(finished, eos_token_id, token)
            finished = finished | (token == eos_token_id)
        return (token, cache, key, finished), token

    tokens = token[:, None]
    if max_new_tokens > 1:
        (token, cache, key, _), more = jax.lax.scan(
            step, (token, cache, key, finished), None, length=max_new_tokens - 1
        )
        tokens = jnp.concatenate([tokens, more.T], axis=1)
    if return_cache:
        _, cache = model(token[:, None], cache=cache, return_cache=True)
    ids = jnp.concatenate([prompt_ids, tokens.astype(prompt_ids.dtype)], axis=1)
    return ids, cache if return_cache else None, key
