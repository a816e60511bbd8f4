"""Next-token cross-entropy, on whole logits or chunk by chunk of tokens.

    loss[t] = logsumexp(logits[t]) - logits[t, target[t]]

Chunked, the logits of n tokens at a time are formed, reduced to n losses and dropped; the backward forms them again.
That is for losses token by token, each with a cotangent of its own; sums and means have one (`fused_loss`).
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Int

from reference.segments import run_starts

Reduction = Literal["mean", "sum", "none"]

LARGEST_WHOLE = 2**24  # logits: 64 MiB in float32
CHUNK = 4096  # tokens; fewer read and write the weight's gradient more often, more need more memory
FUSED_CHUNK = 2048  # the same, of `pallas_kernels.linear_cross_entropy`


def chunk_rows(count: int, vocabulary: int, asked: int | None, fused: bool = False) -> int | None:
    """How many tokens a chunk has: what is asked for, else CHUNK (FUSED_CHUNK); None where few logits are formed all at
    once.
    """
    if count == 0 or (asked is None and count * vocabulary <= LARGEST_WHOLE):
        return None
    return asked or (FUSED_CHUNK if fused else CHUNK)


def token_losses(logits: Float[Array, "*batch V"], targets: Int[Array, "*batch"], dtype) -> Float[Array, "*batch"]:
    """Cross-entropy of every token in `dtype`."""
    logits = logits.astype(dtype)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


def chunked_token_losses(
    head: Callable[[Array], Array], hidden: Float[Array, "B L D"], targets: Int[Array, "B L"], chunk: int, dtype
) -> Float[Array, "B L"]:
    """`token_losses(head(hidden), targets)` with at most `chunk` rows of logits at a time."""
    count = targets.size
    chunk = min(chunk, count)
    pad = -count % chunk
    rows = jnp.pad(hidden.reshape(count, -1), ((0, pad), (0, 0))).reshape(-1, chunk, hidden.shape[-1])
    wanted = jnp.pad(targets.reshape(-1), (0, pad)).reshape(-1, chunk)
    step = jax.checkpoint(lambda pair: token_losses(head(pair[0]), pair[1], dtype))
    return lax.map(step, (rows, wanted)).reshape(-1)[:count].reshape(targets.shape)


def valid_targets(
    targets: Int[Array, "B T"],
    ignore_index: int,
    attention_mask: Bool[Array, "B L"] | None,
    segment_ids: Int[Array, "B L"] | None,
    shift: bool = True,
) -> Bool[Array, "B T"]:
    """Targets that count: not ignored, not masked, not padding, and in the document of the token before them.

    Without `shift` there is a target of every position; it counts if it is not ignored and its position is a token.
    """
    valid = targets != ignore_index
    if not shift:
        valid = valid if attention_mask is None else valid & attention_mask
        return valid if segment_ids is None else valid & (segment_ids != 0)
    if attention_mask is not None:
        valid = valid & attention_mask[:, 1:]
    if segment_ids is not None:
        valid = valid & ~run_starts(segment_ids)[:, 1:] & (segment_ids[:, 1:] != 0)
    return valid


def loss_factors(valid: Bool[Array, "B T"], reduction: Reduction) -> Float32[Array, "B T"]:
    """What losses are multiplied by before they are summed: 1 where valid, for the mean 1 / their number; else 0."""
    factors = valid.astype(jnp.float32)
    return factors / jnp.maximum(jnp.sum(valid), 1).astype(jnp.float32) if reduction == "mean" else factors


def reduce_losses(losses: Array, valid: Array, reduction: Reduction) -> Array:
    """Mean over valid tokens (0 if there is none), sum, or the losses themselves with zeros where not valid."""
    kept = jnp.where(valid, losses, 0)
    if reduction == "none":
        return kept
    total = jnp.sum(kept.astype(jnp.float32))
    if reduction == "mean":
        total = total / jnp.maximum(jnp.sum(valid), 1).astype(jnp.float32)
    return total.astype(losses.dtype)
