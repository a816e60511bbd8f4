"""One token per call: the same program, cost and memory at every position."""

from collections.abc import Iterator

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from megalodon_jax.inference.generation import Step, begin, check_call, draw, next_draw, resolve_eos, with_bos
from megalodon_jax.inference.sampling import Sampling, number
from megalodon_jax.language_model import LanguageModel
from megalodon_jax.precision import cast_weights
from megalodon_jax.types import GenerationState, ModelCache


def decode_step(
    model: LanguageModel, tokens: Int[Array, " B"], cache: ModelCache, *, checks: bool = False
) -> tuple[Float[Array, "B V"], ModelCache]:
    """Logits after one more token of each row, and the new cache; compiled.

    The given cache is used up, with every array in it: its memory is that of the new one. Weights are cast to
    compute_dtype on every call; for many calls cast them once, by `megalodon_jax.precision.cast_weights`. Values are
    looked at only with `checks`: otherwise token ids are the caller's, and a row gives NaN from where it would pass
    `config.max_stream_len` tokens.

    Raises:
        TypeError: tokens that are no integers.
        ValueError: tokens not of shape [batch], or a cache that does not fit.
    """
    if not (hasattr(tokens, "dtype") and jnp.issubdtype(tokens.dtype, jnp.integer)):
        raise TypeError(
            f"tokens must be an integer array [batch], got {getattr(tokens, 'dtype', type(tokens).__name__)}"
        )
    if tokens.ndim != 1:
        raise ValueError(f"tokens must have shape [batch], one token for each row, got {tokens.shape}")
    return _decode((model, tokens), cache, checks)


@eqx.filter_jit(donate="all-except-first")
def _decode(kept, cache: ModelCache, checks: bool):
    model, tokens = kept
    logits, cache = model(tokens[:, None], cache=cache, return_cache=True, checks=checks)
    return logits[:, 0], cache


def generate_stream(
    model: LanguageModel,
    prompt_ids: Int[Array, "B P"],
    max_new_tokens: int,
    key=None,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    bos_token_id: int | None = None,
    eos_token_id: int | None = None,
    attention_mask: Bool[Array, "B P"] | None = None,
    cache: ModelCache | None = None,
    state: GenerationState | None = None,
) -> Iterator[np.ndarray]:
    """The tokens of `generate`, [B] int32, each as soon as it is known; ends when every row has ended.

    Arguments and errors as in `generate`; errors come with the first token. Gives back no state: where a stream has to
    go on later, `generate` does.
    """
    attention_mask = check_call(model, prompt_ids, max_new_tokens, attention_mask, cache, state)
    eos_token_id = number("eos_token_id", eos_token_id, int)
    eos, sampling = resolve_eos(model.config, eos_token_id), Sampling(temperature, top_k, top_p, min_p)
    model = cast_weights(model)  # once, and not at every token
    if state is None:
        prompt_ids, attention_mask = with_bos(model.config, prompt_ids, attention_mask, bos_token_id, cache)
    elif np.asarray(state.finished).all():
        return
    step = _first(model, prompt_ids, attention_mask, cache, state, key, sampling, eos)
    yield np.array(step.token)
    for _ in range(max_new_tokens - 1):
        if np.asarray(step.finished).all():
            return
        step = _next(model, step, sampling, eos)
        yield np.array(step.token)


@eqx.filter_jit
def _first(model: LanguageModel, ids, mask, cache, state, key, sampling: Sampling, eos: int | None) -> Step:
    return draw(begin(model, ids, mask, cache, state), key, sampling, eos)


@eqx.filter_jit(donate="all-except-first")
def _next(model: LanguageModel, step: Step, sampling: Sampling, eos: int | None) -> Step:
    return next_draw(model, step, sampling, eos)
