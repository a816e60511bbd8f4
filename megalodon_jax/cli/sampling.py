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

    Where a model has a longest stream, bytes that do not fit into it are drawn one by one, each after as many of the
    last as leave room for it. `drawing` and errors as in `megalodon_jax.inference.sampling.Sampling`.
    """
    ids, key = _ids(prompt), jax.random.key(seed)
    drawn = []
    if fitting := _fitting(model, ids, count):
        for token in generate_stream(model, ids, fitting, key, **drawing):
            drawn.append(int(token[0]))
            yield drawn[-1]
    yield from _cropped(model, ids, drawn, count, key, drawing)


def draw_bytes(model: LanguageModel, prompt: bytes, count: int, seed: int, **drawing) -> Iterator[int]:
    """The same, of what fits by one compiled loop, known when all of that is."""
    ids, key = _ids(prompt), jax.random.key(seed)
    drawn = []
    if fitting := _fitting(model, ids, count):
        tokens, _, _ = generate(model, ids, fitting, key, **drawing)
        drawn = np.asarray(tokens)[0, ids.shape[1] :].tolist()
        end = model.config.eos_token_id
        drawn = drawn[: drawn.index(end) + 1] if end in drawn else drawn
        yield from drawn
    yield from _cropped(model, ids, drawn, count, key, drawing)


def _fitting(model: LanguageModel, ids: Int32[Array, "1 P"], count: int) -> int:
    return min(count, max(0, model.config.max_stream_len - ids.shape[1]))


def _cropped(
    model: LanguageModel, ids: Int32[Array, "1 P"], drawn: list[int], count: int, key: jax.Array, drawing: dict
) -> Iterator[int]:
    """What is left of `count` bytes after those drawn, which may have ended the text; every one is a prefill."""
    text = [*np.asarray(ids)[0].tolist(), *drawn]
    for number in range(len(drawn), count):
        if number and text[-1] == model.config.eos_token_id:
            return
        last = jnp.asarray([text[1 - model.config.max_stream_len :]], jnp.int32)
        tokens, _, _ = generate(model, last, 1, jax.random.fold_in(key, number), **drawing)
        text.append(int(tokens[0, -1]))
        yield text[-1]


def _ids(prompt: bytes) -> Int32[Array, "1 P"]:
    return jnp.asarray([list(prompt or EMPTY_PROMPT)], jnp.int32)


def decoded(tokens: Iterable[int]) -> Iterator[str]:
    """UTF-8 text as soon as its bytes are complete; bytes that are not UTF-8 become U+FFFD."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in tokens:
        yield decoder.decode(bytes([token]))
    yield decoder.decode(b"", final=True)
