"""Chunked attention by `jax.nn.dot_product_attention`, which wants queries, keys and values of one head dim.

The values are cut into tiles as wide as the keys, each of which is a head of its own with the same queries and keys:

    o[:, i] = softmax(causal(q k^T)) v[:, i]        for tiles i of the value features

Scores are formed once for each tile. Chunks are rows of the batch, so they have to be whole; no mask, no documents.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def attention_by_value_tiles(
    q: Float[Array, "B L H K"],
    k: Float[Array, "B L H K"],
    v: Float[Array, "B L H V"],
    *,
    chunk_size: int,
    implementation: Literal["xla", "cudnn"] = "xla",
) -> Float[Array, "B L H V"]:
    """Causal attention inside chunks, scores not scaled; V is filled up with zeros to a multiple of K.

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
