r"""Softmax attention inside fixed chunks, pure jnp (Megalodon, arXiv 2404.08801, section 3.3).

    s[i, j] = q[i] . k[j]        o[i] = sum_j softmax_j(s[i, :] where allowed)  v[j]

Query i may attend key j iff both lie in the same chunk, j <= i and key j is valid. Without `segment_ids` chunks are
[0, C), [C, 2C), ...; with them the chunk grid restarts at every document, so the chunk of a query lies inside the two
grid-aligned blocks of C keys that end with its own. Score matrices are therefore [C, C] or [C, 2C] per block, never
larger. A query without an allowed key gives 0, in the backward too.
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from reference.segments import run_positions, run_start_index, valid_tokens

Precision = Literal["tf32"] | None


@partial(jax.jit, static_argnames=("chunk_size", "precision"))
def chunked_attention(
    q: Float[Array, "B L H K"],
    k: Float[Array, "B L H K"],
    v: Float[Array, "B L H V"],
    *,
    chunk_size: int,
    mask: Bool[Array, "B L"] | None = None,
    segment_ids: Int[Array, "B L"] | None = None,
    precision: Precision = None,
) -> Float[Array, "B L H V"]:
    """Reference chunked_attention; arguments, shapes and meaning as in `pallas_kernels.chunked_attention`."""
    blocks = chunk_blocks(q, k, v, chunk_size=chunk_size, mask=mask, segment_ids=segment_ids)
    return join_blocks(masked_attention(*blocks, precision=precision), q.shape[1])


def chunk_blocks(q, k, v, *, chunk_size: int, mask=None, segment_ids=None):
    """Cut into blocks of C queries and the C (packed: 2 C) keys they can see, with the pairs that are allowed.

    Returns q [B, n, C, H, K], k [B, n, S, H, K], v [B, n, S, H, V], allowed [B, n, 1, C, S].
    """
    batch, length = q.shape[:2]
    chunk = min(chunk_size, length)
    valid = valid_tokens(mask, segment_ids)
    keys = jnp.ones((batch, length), bool) if valid is None else valid
    q, k, v, keys = (_blocks(a, chunk) for a in (q, k, v, keys))
    if segment_ids is None:
        allowed = jnp.tril(jnp.ones((chunk, chunk), bool)) & keys[:, :, None, :]
    else:
        k, v = (_with_previous(a) for a in (k, v))
        allowed = _packed_allowed(segment_ids, keys, chunk_size, chunk)
    return q, k, v, allowed[:, :, None]


def join_blocks(o: Float[Array, "B n C H V"], length: int) -> Float[Array, "B L H V"]:
    """Undo the cut of `chunk_blocks`: drop the padding of the last block."""
    return o.reshape(o.shape[0], -1, *o.shape[3:])[:, :length]


def masked_attention(
    q: Float[Array, "*batch Q H K"],
    k: Float[Array, "*batch S H K"],
    v: Float[Array, "*batch S H V"],
    allowed: Bool[Array, "*#batch #H #Q S"],
    *,
    precision: Precision = None,
    softmax_dtype=jnp.float32,
    weights_transform=None,
) -> Float[Array, "*batch Q H V"]:
    """Dense attention over `allowed` pairs, scale 1; scores and softmax in `softmax_dtype`, result in q.dtype.

    `weights_transform` is applied to the normalised weights (dropout). Masked keys and values may hold anything.
    """
    seen = jnp.any(allowed, axis=(-3, -2))  # [*batch, S]: keys that some query may attend
    k, v = (jnp.where(seen[..., None, None], a, 0) for a in (k, v))
    contract = partial(
        jnp.einsum,
        precision=lax.Precision.DEFAULT if precision == "tf32" else lax.Precision.HIGHEST,
        preferred_element_type=softmax_dtype,
    )
    scores = jnp.where(allowed, contract("...qhk,...shk->...hqs", q, k), -jnp.inf)
    top = lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - jnp.where(jnp.isfinite(top), top, 0))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    weights = weights / jnp.where(total == 0, 1, total)
    if weights_transform is not None:
        weights = weights_transform(weights)
    return contract("...hqs,...shv->...qhv", weights.astype(v.dtype), v).astype(q.dtype)


def _blocks(a, chunk: int):
    """[B, L, ...] -> [B, blocks, chunk, ...], padded with zeros (False)."""
    batch, length = a.shape[:2]
    a = jnp.pad(a, ((0, 0), (0, -length % chunk)) + ((0, 0),) * (a.ndim - 2))
    return a.reshape(batch, -1, chunk, *a.shape[2:])


def _with_previous(a):
    """[B, blocks, chunk, ...] -> [B, blocks, 2 chunk, ...]: every block behind the one before it."""
    previous = jnp.pad(a[:, :-1], ((0, 0), (1, 0)) + ((0, 0),) * (a.ndim - 2))
    return jnp.concatenate([previous, a], axis=2)


def _packed_allowed(segment_ids, keys, chunk_size: int, chunk: int):
    """[B, blocks, chunk, 2 chunk]: same run, same run-local chunk, causal, valid key."""
    index = jnp.arange(segment_ids.shape[1], dtype=jnp.int32)
    chunk_start = run_start_index(segment_ids) + run_positions(segment_ids) // chunk_size * chunk_size
    position = _blocks(jnp.broadcast_to(index, segment_ids.shape), chunk)
    # Two positions share run and run-local chunk iff the same chunk start belongs to both.
    start = _blocks(chunk_start, chunk)
    key_position, key_start, keys = (_with_previous(a) for a in (position, start, keys))
    same = start[..., :, None] == key_start[..., None, :]
    causal = position[..., :, None] >= key_position[..., None, :]
    return same & causal & keys[..., None, :]
