"""Text from a byte model."""

import codecs
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32

from megalodon_jax.inference import generate, generate_stream
from megalodon_jax.language_model import LanguageModel

EMPTY_PROMPT = b"\n"


def stream_bytes(model: LanguageModel, prompt: bytes, count: int, seed: int, **drawing) -> Iterator[int]:
    """Draw `count` bytes after `prompt` (a newline if empty), each as soon as it is known.

    `drawing` and errors as in `megalodon_jax.inference.sampling.Sampling`.
    """
    tokens = generate_stream(model, _ids(prompt), count, jax.random.key(seed), **drawing)
    return (int(token[0]) for token in tokens)


def draw_bytes(model: LanguageModel, prompt: bytes, count: int, seed: int, **drawing) -> Iterator[int]:
    """The same by one compiled loop, known when all are."""
    ids = _ids(prompt)
    tokens, _, _ = generate(model, ids, count, jax.random.key(seed), **drawing)
    drawn = np.asarray(tokens)[0, ids.shape[1] :].tolist()
    end = model.config.eos_token_id
    return iter(drawn[: drawn.index(end) + 1] if end in drawn else drawn)


def _ids(prompt: bytes) -> Int32[Array, "1 P"]:
    return jnp.asarray([list(prompt or EMPTY_PROMPT)], jnp.int32)


def decoded(tokens: Iterable[int]) -> Iterator[str]:
    """UTF-8 text as soon as its bytes are complete; bytes that are not UTF-8 become U+FFFD."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in tokens:
        yield decoder.decode(bytes([token]))
    yield decoder.decode(b"", final=True)
