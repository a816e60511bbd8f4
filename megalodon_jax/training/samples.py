"""Text that a model in training goes on with."""

from typing import Any

import jax
import numpy as np
from jaxtyping import UInt

from megalodon_jax.inference import generate
from megalodon_jax.training.config import TrainingConfig


def draw_sample(model: Any, tokens: UInt[np.ndarray, " N"], config: TrainingConfig, step: int) -> dict[str, Any]:
    """A prompt from `tokens` and what the model makes of it, the same for the same seed and step.

    Returns:
        "prompt" and "sample": text where tokens are bytes (U+FFFD where they are not UTF-8), else lists of ids.

    Raises:
        ValueError: prompt and sample are longer than the model can be.
    """
    settings = config.samples
    length = min(settings.prompt_length, len(tokens))
    start = np.random.default_rng((config.seed, step)).integers(0, len(tokens) - length, endpoint=True)
    prompt = tokens[start : start + length].astype(np.int32)
    key = jax.random.fold_in(jax.random.key(config.seed), step)
    ids, _, _ = generate(
        model, jax.numpy.asarray(prompt[None]), settings.length, key, eos_token_id=-1,
        temperature=settings.temperature, top_k=settings.top_k, top_p=settings.top_p, min_p=settings.min_p,
    )  # fmt: skip
    drawn = np.asarray(ids)[0, length:]
    if config.data.tokens != "bytes":
        return {"prompt": prompt.tolist(), "sample": drawn.tolist()}
    return {"prompt": _text(prompt), "sample": _text(drawn)}


def _text(ids: np.ndarray) -> str:
    return bytes(np.minimum(ids, 255).astype(np.uint8)).decode(errors="replace")
