"""A whole continuation in one compiled program: one parallel call for the prompt, then a loop of single tokens.

The loop ends when every row has ended. A row that has ended is filled up with its end token and feeds nothing more
into its state, which is therefore that of the row alone.
"""

from dataclasses import asdict
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float32, Int, Int32

from megalodon_jax.inference.sampling import Sampling, number
from megalodon_jax.language_model import LanguageConfig, LanguageModel
from megalodon_jax.precision import cast_weights
from megalodon_jax.types import GenerationState, ModelCache
from megalodon_jax.validation import check_mask, require_in_range, require_room

NEVER = -1  # the eos_token_id that ends nothing


def generate(
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
    return_cache: bool = False,
    state: GenerationState | None = None,
    return_state: bool = False,
) -> tuple[Int[Array, "B T"], ModelCache | GenerationState | None, jax.Array | None]:
    """Continue a prompt by `max_new_tokens` tokens; compiled once per prompt shape and set of options.

    Args:
        model: the language model.
        prompt_ids: token ids; an empty prompt (P = 0) starts from one BOS token, which appears in the output; beside a
            cache only if `bos_token_id` is given.
        max_new_tokens: number of tokens to add.
        key: PRNG key, needed unless temperature is 0.
        temperature, top_k, top_p, min_p: as in `Sampling`.
        bos_token_id: for an empty prompt; config.bos_token_id if None.
        eos_token_id: a row that has produced it is filled up with it; config.eos_token_id if None, -1 never ends.
        attention_mask: which tokens of the prompt there are, at least one in each row; padding may stand anywhere,
            usually to the left. Each row is continued as if alone. Where nothing is padded None is a little faster, and
            another program.
        cache: state of what came before the prompt.
        return_cache: also return the state after the last new token.
        state: what `return_state` gave: goes on exactly where that call stopped. The prompt has to be empty.
        return_state: also return the state to go on from.

    Returns:
        ids [B, P + max_new_tokens], the cache or the state or None, and the advanced key (the given one at
        temperature 0).

    Raises:
        ValueError: max_new_tokens not positive, no key, no BOS, a prompt not of two dimensions, a row without a token,
            more tokens than `config.max_stream_len` in the stream, a state beside a cache or a prompt, or an option
            that `Sampling` or the model rejects.
        TypeError: prompt_ids or max_new_tokens not integer, an option or a key of another type than expected.
    """
    attention_mask = check_call(model, prompt_ids, max_new_tokens, attention_mask, cache, state)
    sampling = Sampling(temperature, top_k, top_p, min_p)
    bos_token_id, eos_token_id = number("bos_token_id", bos_token_id, int), number("eos_token_id", eos_token_id, int)
    return generate_jit(
        model, prompt_ids, int(max_new_tokens), key, **asdict(sampling),
        bos_token_id=bos_token_id, eos_token_id=eos_token_id, attention_mask=attention_mask,
        cache=cache, return_cache=return_cache, state=state, return_state=return_state,
    )  # fmt: skip


@eqx.filter_jit
def generate_jit(
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
    return_cache: bool = False,
    state: GenerationState | None = None,
    return_state: bool = False,
) -> tuple[Int[Array, "B T"], ModelCache | GenerationState | None, jax.Array | None]:
    """`generate` without the checks that need concrete values."""
    _require_some(max_new_tokens)
    _check_prompt(prompt_ids)
    _require_length(model.config, prompt_ids, max_new_tokens, state)
    if return_cache and return_state:
        raise ValueError("return_cache and return_state exclude each other: a state holds its cache")
    eos, sampling = resolve_eos(model.config, eos_token_id), Sampling(temperature, top_k, top_p, min_p)
    model = cast_weights(model)  # once, and not at every token
    if state is None:
        prompt_ids, attention_mask = with_bos(model.config, prompt_ids, attention_mask, bos_token_id, cache)
    state = begin(model, prompt_ids, attention_mask, cache, state)
    step = draw(state, key, sampling, eos)
    tokens = jnp.full((prompt_ids.shape[0], max_new_tokens), 0 if eos is None else eos, jnp.int32)

    def goes_on(carry):
        number, step, _ = carry
        return (number < max_new_tokens) & ~jnp.all(step.finished)

    def body(carry):
        number, step, tokens = carry
        step = next_draw(model, step, sampling, eos)
        return number + 1, step, tokens.at[:, number].set(step.token)

    one = jnp.asarray(1, jnp.int32)
    _, step, tokens = jax.lax.while_loop(goes_on, body, (one, step, tokens.at[:, 0].set(step.token)))
    ids = jnp.concatenate([prompt_ids.astype(jnp.int32), tokens], axis=1)
    if not (return_cache or return_state):
        return ids, None, step.key
    state = feed(model, step, eos)
    return ids, state.cache if return_cache else state, step.key


def check_call(model: LanguageModel, prompt_ids, max_new_tokens: int, mask, cache, state):
    """The mask, after every check of a call that needs concrete values."""
    _require_some(max_new_tokens)
    _check_prompt(prompt_ids)
    require_in_range("prompt_ids", prompt_ids, model.config.vocab_size, checks=False)
    check_mask(mask, prompt_ids)
    for name, given, kind in (("cache", cache, ModelCache), ("state", state, GenerationState)):
        if given is not None and not isinstance(given, kind):
            raise TypeError(f"{name} must be a {kind.__name__}, got {type(given).__name__}")
    held = cache if state is None else state.cache
    more = _require_length(model.config, prompt_ids, max_new_tokens, state)
    if held is not None:
        require_room(prompt_ids, held, more, checks=False, most=model.config.max_stream_len)
    if mask is not None and not isinstance(mask, Tracer) and not np.asarray(mask).any(axis=-1).all():
        raise ValueError("attention_mask must contain at least one True per batch element.")
    return mask


class Step(NamedTuple):
    """A token of each row, drawn and not yet fed.

    Attributes:
        drew: False where the row had ended before.
        finished: True where it has ended now.
        logits, cache: those before the token.
    """

    token: Int32[Array, " B"]
    drew: Bool[Array, " B"]
    finished: Bool[Array, " B"]
    logits: Float32[Array, "B V"]
    cache: ModelCache
    key: jax.Array | None


def begin(model: LanguageModel, prompt_ids, mask, cache, state: GenerationState | None) -> GenerationState:
    """The state after the prompt: prefill in one parallel call."""
    config = model.config
    if config.effective_output_size != config.vocab_size:
        raise ValueError(
            f"generation feeds tokens back: output_size {config.effective_output_size} must equal vocab_size "
            f"{config.vocab_size}"
        )
    if state is None:
        logits, cache = _last_logits(model, prompt_ids, mask, cache)
        return GenerationState(cache, logits, jnp.zeros(prompt_ids.shape[0], bool))
    if state.logits.shape[-1] != config.vocab_size:
        raise ValueError(f"the state is of {state.logits.shape[-1]} tokens, the model of {config.vocab_size}")
    if cache is not None or mask is not None or prompt_ids.shape != (*state.finished.shape, 0):
        raise ValueError(
            f"a state goes on where it stopped: give it no cache, no mask and a prompt of shape "
            f"{(*state.finished.shape, 0)}, not {prompt_ids.shape}"
        )
    return state


def draw(state: GenerationState, key, sampling: Sampling, eos: int | None) -> Step:
    """The token after a state."""
    token, key = sampling.draw(state.logits, key)
    if eos is None:
        finished = jnp.zeros_like(state.finished)
        return Step(token, ~finished, finished, state.logits, state.cache, key)
    token = jnp.where(state.finished, eos, token)
    return Step(token, ~state.finished, state.finished | (token == eos), state.logits, state.cache, key)


def next_draw(model: LanguageModel, step: Step, sampling: Sampling, eos: int | None) -> Step:
    """The token after a token."""
    return draw(feed(model, step, eos), step.key, sampling, eos)


def feed(model: LanguageModel, step: Step, eos: int | None) -> GenerationState:
    """The state after the token of a step; rows that had ended stay as they are."""
    if eos is None:
        logits, cache = _last_logits(model, step.token[:, None], None, step.cache)
    else:
        logits, cache = _last_logits(model, step.token[:, None], step.drew[:, None], step.cache)
        logits = jnp.where(step.drew[:, None], logits, step.logits)
    return GenerationState(cache, logits, step.finished)


def resolve_eos(config: LanguageConfig, eos_token_id: int | None) -> int | None:
    """The token that ends a row, None for none."""
    name, eos = ("config.eos_token_id", config.eos_token_id) if eos_token_id is None else ("eos_token_id", eos_token_id)
    if eos is not None and eos != NEVER and not 0 <= eos < config.vocab_size:
        raise ValueError(f"{name} must be in [0, {config.vocab_size}), or -1 for none; got {eos}")
    return None if eos == NEVER else eos


def with_bos(config: LanguageConfig, prompt_ids, mask, bos_token_id: int | None, cache: ModelCache | None):
    """The prompt, or one BOS token for an empty one, and its mask."""
    if prompt_ids.shape[1]:
        return prompt_ids, mask
    if cache is not None and bos_token_id is None:
        raise ValueError(
            "an empty prompt does not go on from a cache, which has no logits: give its last token as the prompt, a "
            "state (return_state) instead of a cache, or bos_token_id to begin a text there"
        )
    bos = config.bos_token_id if bos_token_id is None else bos_token_id
    if bos is None:
        raise ValueError("an empty prompt needs bos_token_id, and config.bos_token_id is None")
    if not 0 <= bos < config.vocab_size:
        raise ValueError(f"bos_token_id must be in [0, {config.vocab_size}), got {bos}")
    return jnp.full((prompt_ids.shape[0], 1), bos, jnp.int32), None


def _check_prompt(prompt_ids) -> None:
    if not (hasattr(prompt_ids, "dtype") and jnp.issubdtype(prompt_ids.dtype, jnp.integer)):
        found = getattr(prompt_ids, "dtype", type(prompt_ids).__name__)
        raise TypeError(f"prompt_ids must be an integer array [batch, length], got {found}")
    if prompt_ids.ndim != 2:
        raise ValueError(f"prompt_ids must have shape [batch, length], got {prompt_ids.shape}")


def _require_some(max_new_tokens: int) -> None:
    if number("max_new_tokens", max_new_tokens, int) is None:
        raise TypeError("max_new_tokens must be a Python integer, not None")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must be non-negative, got {max_new_tokens}")
    if max_new_tokens == 0:
        raise ValueError("max_new_tokens must be > 0: there is nothing to generate")


def _require_length(config: LanguageConfig, prompt_ids, max_new_tokens: int, state) -> int:
    """How many tokens this call adds to its stream, or ValueError if they are more than a stream can have."""
    more = max_new_tokens + (max(prompt_ids.shape[-1], 1) if state is None else 0)
    if more > config.max_stream_len:
        raise ValueError(
            f"max_new_tokens {max_new_tokens}, {more} with the prompt, would pass {config.max_stream_len}, the most "
            "that a stream of this model has"
        )
    return more


def _last_logits(model: LanguageModel, ids, mask, cache) -> tuple[Float32[Array, "B V"], ModelCache]:
    """Logits after the last token of each row, and the state there."""
    hidden, cache = model.model(ids, mask, cache, True)
    last = jnp.full(ids.shape[:1], ids.shape[1] - 1, jnp.int32)
    if mask is not None:
        last = jnp.max(jnp.where(mask, jnp.arange(ids.shape[1], dtype=jnp.int32), 0), axis=1)
    logits = model.head(jnp.take_along_axis(hidden, last[:, None, None], axis=1))[:, 0]
    assert cache is not None
    return logits.astype(jnp.float32), cache
