"""Text from a byte model, one compiled step per byte."""

import codecs
from collections.abc import Iterable, Iterator

import equinox as eqx
import jax
import jax.numpy as jnp

from megalodon_jax.inference import sample_token
from megalodon_jax.model import MegalodonForCausalLM
from megalodon_jax.precision import cast_linear_weights
from megalodon_jax.types import ModelCache

EMPTY_PROMPT = b"\n"


def stream_bytes(
    model: MegalodonForCausalLM,
    prompt: bytes,
    count: int,
    seed: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Iterator[int]:
    """Draw `count` bytes after `prompt` (a newline if empty), each as soon as it is known.

    Raises:
        ValueError: temperature or top_k negative, top_p outside (0, 1].
    """

    def advance(model, ids, cache: ModelCache | None, key):
        logits, cache = model(ids, cache=cache, return_cache=True)
        return sample_token(logits[:, -1], key, temperature, top_k, top_p), cache

    model = cast_linear_weights(model, model.config.compute_dtype)  # once, not at every byte
    compiled = eqx.filter_jit(advance)  # compiled twice: for the prompt, and for one byte
    ids, cache = jnp.asarray([list(prompt or EMPTY_PROMPT)], jnp.int32), None
    for key in jax.random.split(jax.random.key(seed), count):
        token, cache = compiled(model, ids, cache, key)
        ids = token[:, None]
        yield int(token[0])


def decoded(tokens: Iterable[int]) -> Iterator[str]:
    """UTF-8 text as soon as its bytes are complete; bytes that are not UTF-8 become U+FFFD."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in tokens:
        yield decoder.decode(bytes([token]))
    yield decoder.decode(b"", final=True)
