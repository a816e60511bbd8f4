r"""Softmax attention inside fixed chunks, pure jnp (Megalodon, arXiv 2404.08801, section 3.3).

    s[i, j] = q[i] . k[j]        o[i] = sum_j softmax_j(s[i, :] where allowed)  v[j]

Query i may attend key j iff both lie in the same chunk, j <= i and key j is valid. Without `segment_ids` chunks are
[0, C), [C, 2C), ...; with them the chunk grid restarts at every document, so the chunk of a query lies inside the two
grid-aligned blocks of C keys that end with its own. Score matrices are therefore [C, C] or [C, 2C] per block, never
larger. A query without an allowed key gives 0, in the backward too.

With an activation values are silu(v + v_bias), with a gate the result is o silu(gate + gate_bias) (`reference.gating`).

Cached keys are the n tokens of the first chunk that came before token 0, whose chunk is [0, C - n) then; they are seen
by the first block of queries alone.
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, DTypeLike, Float, Int, PRNGKeyArray

from reference.dropout import AttentionDropout, DropoutMode
from reference.gating import activated, gated
from reference.segments import cached_span, run_chunks, take_rows, valid_tokens

Precision = Literal["tf32"] | None


@partial(
    jax.jit,
    static_argnames=("chunk_size", "v_activation", "precision", "softmax_dtype", "dropout_rate", "dropout_mode"),
)
def chunked_attention(
    q: Float[Array, "B L H K"],
    k: Float[Array, "B L H K"],
    v: Float[Array, "B L H V"],
    *,
    chunk_size: int,
    mask: Bool[Array, "B L"] | None = None,
    segment_ids: Int[Array, "B L"] | None = None,
    cached_k: Float[Array, "B S H K"] | None = None,
    cached_v: Float[Array, "B S H V"] | None = None,
    cached_length: Int[Array, " B"] | None = None,
    v_activation: Literal["silu"] | None = None,
    v_bias: Float[Array, "H V"] | None = None,
    gate: Float[Array, "B L H V"] | None = None,
    gate_bias: Float[Array, "H V"] | None = None,
    precision: Precision = None,
    softmax_dtype: DTypeLike = jnp.float32,
    dropout_rate: float = 0.0,
    dropout_key: PRNGKeyArray | None = None,
    dropout_mode: DropoutMode = "post_softmax",
) -> Float[Array, "B L H V"]:
    """Reference chunked_attention; arguments, shapes and meaning as in `pallas_kernels.chunked_attention`."""
    if v_activation is not None:
        valid = valid_tokens(mask, segment_ids)  # what others hold is not to reach the gradient of SiLU
        v = activated(v if valid is None else jnp.where(valid[..., None, None], v, 0), v_bias)
    o = _attention(
        q, k, v, chunk_size, mask, segment_ids,
        cached_k, cached_v, cached_length, precision, softmax_dtype, dropout_rate, dropout_key, dropout_mode,
    )  # fmt: skip
    return o if gate is None else gated(o, gate, gate_bias)


def _attention(
    q, k, v, chunk_size, mask, segment_ids, cached_k, cached_v, cached_length, precision, softmax_dtype, dropout_rate,
    dropout_key, dropout_mode,
):  # fmt: skip
    def attend(*blocks, key=dropout_key):
        drop = None if key is None or not dropout_rate else AttentionDropout(dropout_rate, key, dropout_mode)
        return masked_attention(*blocks, precision=precision, softmax_dtype=softmax_dtype, drop=drop)

    tokens = {"chunk_size": chunk_size, "mask": mask, "segment_ids": segment_ids}
    length = q.shape[1]
    if cached_k is None or cached_v is None or cached_length is None:
        return join_blocks(attend(*chunk_blocks(q, k, v, **tokens)), length)
    before, reach = cached_span(cached_length, cached_k.shape[1], length, chunk_size, segment_ids)
    if segment_ids is None and length >= chunk_size:
        *grid, own = _on_grid(q, k, v, cached_k, cached_v, before, mask, chunk_size)
        return take_rows(join_blocks(attend(*chunk_blocks(*grid[:3], chunk_size=chunk_size, mask=grid[3])), None), own)
    blocks = chunk_blocks(q, k, v, **tokens, before=before)
    count = blocks[0].shape[1]
    keys = None if dropout_key is None else jax.random.split(dropout_key, count)
    first_key, later_keys = (None, None) if keys is None else (keys[0], keys[1:])
    first = attend(*_after_cached(blocks, cached_k, cached_v, before, reach), key=first_key)[:, None]
    # One after the other: a prompt is long, and the scores of all its blocks are 2 C for each of its tokens.
    later = tuple(jnp.moveaxis(a[:, 1:], 1, 0) for a in blocks)
    rest = lax.map(lambda block: attend(*block[0], key=block[1]), (later, later_keys))
    return join_blocks(jnp.concatenate([first, jnp.moveaxis(rest, 0, 1)], axis=1), length)


def chunk_blocks(q, k, v, *, chunk_size: int, mask=None, segment_ids=None, before=None):
    """Cut into blocks of C queries and the C (packed, or tokens `before` the first: 2 C) keys they can see, with the
    pairs that are allowed.

    Returns q [B, n, C, H, K], k [B, n, S, H, K], v [B, n, S, H, V], allowed [B, n, 1, C, S].
    """
    batch, length = q.shape[:2]
    chunk = min(chunk_size, length)
    valid = valid_tokens(mask, segment_ids)
    keys = jnp.ones((batch, length), bool) if valid is None else valid
    q, k, v, keys = (_blocks(a, chunk) for a in (q, k, v, keys))
    if segment_ids is None and before is None:
        allowed = jnp.tril(jnp.ones((chunk, chunk), bool)) & keys[:, :, None, :]
    else:
        k, v = (_with_previous(a) for a in (k, v))
        first, _ = run_chunks((batch, length), chunk_size, segment_ids, before)
        allowed = _same_chunk(first, keys, chunk)
    return q, k, v, allowed[:, :, None]


def join_blocks(o: Float[Array, "B n C H V"], length: int | None) -> Float[Array, "B L H V"]:
    """Undo the cut of `chunk_blocks`: drop the padding of the last block (None keeps it)."""
    return o.reshape(o.shape[0], -1, *o.shape[3:])[:, :length]


def masked_attention(
    q: Float[Array, "*batch Q H K"],
    k: Float[Array, "*batch S H K"],
    v: Float[Array, "*batch S H V"],
    allowed: Bool[Array, "*#batch #H #Q S"],
    *,
    precision: Precision = None,
    softmax_dtype=jnp.float32,
    drop: AttentionDropout | None = None,
) -> Float[Array, "*batch Q H V"]:
    """Dense attention over `allowed` pairs, scale 1; scores and softmax in `softmax_dtype`, result in q.dtype.

    Masked keys and values may hold anything.
    """
    seen = jnp.any(allowed, axis=(-3, -2))  # [*batch, S]: keys that some query may attend
    k, v = (jnp.where(seen[..., None, None], a, 0) for a in (k, v))
    contract = partial(
        jnp.einsum,
        precision=lax.Precision.DEFAULT if precision == "tf32" else lax.Precision.HIGHEST,
        preferred_element_type=softmax_dtype,
    )
    scores = contract("...qhk,...shk->...hqs", q, k)
    weights = masked_softmax(scores, allowed if drop is None else drop.allowed(allowed, scores.shape))
    weights = weights if drop is None else drop.weights(weights)
    return contract("...hqs,...shv->...qhv", weights.astype(v.dtype), v).astype(q.dtype)


def masked_softmax(scores: Float[Array, "*#q S"], allowed: Bool[Array, "*#q S"]) -> Float[Array, "*q S"]:
    """Softmax over the last axis, of what is allowed; 0 where nothing is."""
    scores = jnp.where(allowed, scores, -jnp.inf)
    top = lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - jnp.where(jnp.isfinite(top), top, 0))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return weights / jnp.where(total == 0, 1, total)


def _blocks(a, chunk: int):
    """[B, L, ...] -> [B, blocks, chunk, ...], padded with zeros (False)."""
    batch, length = a.shape[:2]
    a = jnp.pad(a, ((0, 0), (0, -length % chunk)) + ((0, 0),) * (a.ndim - 2))
    return a.reshape(batch, -1, chunk, *a.shape[2:])


def _with_previous(a):
    """[B, blocks, chunk, ...] -> [B, blocks, 2 chunk, ...]: every block behind the one before it."""
    previous = jnp.pad(a[:, :-1], ((0, 0), (1, 0)) + ((0, 0),) * (a.ndim - 2))
    return jnp.concatenate([previous, a], axis=2)


def _same_chunk(first, keys, chunk: int):
    """[B, blocks, chunk, 2 chunk]: same chunk, causal, valid key; `first` [B, L]: where each token's chunk begins."""
    index = jnp.broadcast_to(jnp.arange(first.shape[1], dtype=jnp.int32), first.shape)
    position, first = _blocks(index, chunk), _blocks(first, chunk)
    key_position, key_first, keys = (_with_previous(a) for a in (position, first, keys))
    same = first[..., :, None] == key_first[..., None, :]
    causal = position[..., :, None] >= key_position[..., None, :]
    return same & causal & keys[..., None, :]


def _on_grid(q, k, v, cached_k, cached_v, before, mask, chunk: int):
    """Each row as its chunks lie: `before` cached tokens, then its own; with the mask of that, and where its own are.

    There may be `before` up to C, so that this is one chunk more than the tokens are.
    """
    slots, length = cached_k.shape[1], q.shape[1]
    index = jnp.arange(length + chunk, dtype=jnp.int32)
    place = index - before[:, None]
    own = jnp.clip(place, 0, length - 1)
    held = jnp.where(place < 0, jnp.minimum(index, slots - 1), slots + own)
    k, v = (take_rows(jnp.concatenate(pair, axis=1), held) for pair in ((cached_k, k), (cached_v, v)))
    valid = (place < length) if mask is None else (place < length) & ((place < 0) | take_rows(mask, own))
    return take_rows(q, own), k, v, valid, before[:, None] + jnp.arange(length, dtype=jnp.int32)


def _after_cached(blocks, cached_k, cached_v, before, reach):
    """The first block, with the cached keys in front of its own."""
    q, k, v, allowed = (a[:, 0] for a in blocks)
    sees, held = (
        jnp.arange(size) < until[:, None] for size, until in ((q.shape[1], reach), (cached_k.shape[1], before))
    )
    allowed = jnp.concatenate([sees[:, None, :, None] & held[:, None, None, :], allowed], axis=-1)
    return q, *(jnp.concatenate(pair, axis=1) for pair in ((cached_k, k), (cached_v, v))), allowed
