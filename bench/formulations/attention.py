"""Causal attention inside chunks, scores not scaled, as it is usually written in JAX.

`dense_attention` forms the scores of the whole sequence and masks those of other chunks and of later tokens,

    o = softmax(q k^T where 0 <= t - s and t // C == s // C, else -inf) v

`attention_by_value_tiles` calls `jax.nn.dot_product_attention`, which wants queries, keys and values of one head dim.
The values are cut into tiles as wide as the keys, each of which is a head of its own with the same queries and keys:

    o[:, i] = softmax(causal(q k^T)) v[:, i]        for tiles i of the value features

Scores are formed once for each tile. Chunks are rows of the batch, so they have to be whole; no mask, no documents.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def dense_attention(
    q: Float[Array, "B L H K"], k: Float[Array, "B L H K"], v: Float[Array, "B L H V"], *, chunk_size: int
) -> Float[Array, "B L H V"]:
    """With scores and softmax in float32; L need not be a multiple of the chunk."""
    positions = jnp.arange(q.shape[1])
    apart = positions[:, None] - positions
    allowed = (apart >= 0) & (positions[:, None] // chunk_size == positions // chunk_size)
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(jnp.where(allowed, scores, -jnp.inf)).astype(v.dtype)
    return jnp.einsum("bhqk,bkhe->bqhe", weights, v)


def attention_by_value_tiles(
    q: Float[Array, "B L H K"],
    k: Float[Array, "B L H K"],
    v: Float[Array, "B L H V"],
    *,
    chunk_size: int,
    implementation: Literal["xla", "cudnn"] = "xla",
) -> Float[Array, "B L H V"]:
    """By tiles of the values, filled up with zeros to a multiple of K.

    Args:
        chunk_size: a divisor of L.
        implementation: of `jax.nn.dot_product_attention`; "cudnn" runs on NVIDIA GPUs only, with K of at most 128 (256
            from sm_90 on), where `pytest -m cuda` compares it with the kernels.
    """
    B, L, H, K = q.shape
    width = v.shape[3]
    tiles = -(-width // K)
    filled = jnp.pad(v, ((0, 0), (0, 0), (0, 0), (0, tiles * K - width)))
    rows = lambda array: array.reshape(B * L // chunk_size, chunk_size, H * tiles, K)  # noqa: E731
    q, k = (rows(jnp.repeat(array, tiles, axis=2)) for array in (q, k))
    o = jax.nn.dot_product_attention(q, k, rows(filled), scale=1.0, is_causal=True, implementation=implementation)
    return o.reshape(B, L, H, tiles * K)[..., :width]
