"""Tiles of the attention kernels: the heuristic, and when a problem is too large.

A program keeps its sums in registers (for o and dv block_q or block_k x block_v of them, for dq and dk a tile of
scores) and loads tiles of what it walks over ahead into shared memory. What each architecture has of both gives the
blocks; each problem has no more than its own sizes of them.
"""

from dataclasses import replace

import jax.numpy as jnp

from pallas_kernels._architecture import Architecture
from pallas_kernels._tiles import AttentionTiles, next_power_of_two, too_many
from pallas_kernels._tuning import choose
from pallas_kernels.chunked_attention.launch import DK, DQ, DV, FORWARD, GATE
from pallas_kernels.chunked_attention.problem import SMALLEST

DEEPEST, WIDEST = 256, 2048
LONGEST = 128  # block of tokens

_T = AttentionTiles  # block_q, block_k, block_v, block_d, num_warps, num_stages
_BFLOAT16 = {
    FORWARD: {
        "sm_80": _T(64, 64, 256, 256, 8, 2),
        "sm_89": _T(64, 32, 256, 256, 8, 2),
        "sm_90": _T(128, 64, 256, 256, 8, 2),
        "sm_100": _T(128, 64, 256, 256, 8, 2),
        "sm_120": _T(64, 32, 256, 256, 8, 2),
    },
    DQ: {
        "sm_80": _T(128, 64, 64, 64, 8, 3),
        "sm_89": _T(128, 128, 64, 64, 8, 2),
        "sm_90": _T(128, 128, 64, 256, 8, 3),
        "sm_100": _T(128, 64, 64, 256, 8, 2),
        "sm_120": _T(128, 128, 64, 64, 8, 2),
    },
    DK: {
        "sm_80": _T(128, 128, 64, 64, 8, 2),
        "sm_89": _T(128, 128, 64, 64, 8, 2),
        "sm_90": _T(128, 128, 64, 256, 8, 3),
        "sm_100": _T(64, 128, 64, 256, 8, 2),
        "sm_120": _T(64, 128, 64, 64, 8, 2),
    },
    DV: {
        "sm_80": _T(32, 64, 256, 256, 8, 2),
        "sm_89": _T(32, 64, 256, 256, 8, 2),
        "sm_90": _T(64, 128, 256, 256, 8, 2),
        "sm_100": _T(64, 128, 256, 256, 8, 2),
        "sm_120": _T(32, 64, 256, 256, 8, 2),
    },
}
# Where loads are masked, because tokens are masked or packed or the sizes are uneven: that takes registers too.
_MASKED = {
    DQ: {
        "sm_80": _T(64, 64, 64, 64, 8, 2),
        "sm_89": _T(64, 64, 64, 64, 8, 2),
        "sm_90": _T(128, 64, 64, 256, 8, 3),
        "sm_100": _T(128, 64, 64, 64, 8, 2),
        "sm_120": _T(64, 64, 64, 64, 8, 2),
    },
    DK: {
        "sm_80": _T(64, 64, 64, 64, 8, 2),
        "sm_89": _T(64, 64, 64, 64, 8, 2),
        "sm_90": _T(64, 128, 64, 256, 8, 3),
        "sm_100": _T(64, 128, 64, 64, 8, 2),
        "sm_120": _T(64, 64, 64, 64, 8, 2),
    },
}
_FLOAT32 = {
    FORWARD: _T(64, 32, 128, 32, 8, 1),
    DQ: _T(64, 32, 32, 32, 8, 1),
    DK: _T(32, 64, 32, 32, 8, 1),
    DV: _T(32, 64, 128, 32, 8, 1),
}
_GATE = _T(32, 16, 128, 16, 4, 1)  # of what it reads alone


def refuse(q, k, v, *, softmax_dtype=jnp.float32, dropout_rate=0.0, **kwargs) -> str | None:
    """Why no kernel takes this problem, or None."""
    if dropout_rate:
        return f"dropout of attention weights (rate {dropout_rate}) is left to XLA"
    if jnp.dtype(softmax_dtype) != jnp.float32:
        return f"softmax in {jnp.dtype(softmax_dtype).name} is left to XLA; the kernels form it in float32"
    batch, _, heads, depth = q.shape
    if depth > DEEPEST or v.shape[3] > WIDEST:
        return f"head dims {depth} (q, k) and {v.shape[3]} (v) are too large; at most {DEEPEST} and {WIDEST}"
    return too_many("batch x heads =", batch * heads)


def launches(
    gpu: Architecture, q, k, v, *, chunk_size: int, mask=None, segment_ids=None, cached_k=None, v_activation=None,
    gate=None, precision=None, **kwargs,
):  # fmt: skip
    """Every kernel with its tiles; with a cache there is the forward alone."""
    batch, length, heads, depth = q.shape
    slots = 0 if cached_k is None else cached_k.shape[1]
    shape = {
        "batch": batch, "length": length, "heads": heads, "depth": depth, "width": v.shape[3], "chunk": chunk_size,
        "dtype": q.dtype.name, "masked": int(mask is not None), "packed": int(segment_ids is not None),
        "cached": slots, "precision": precision or "float32",
        **({} if v_activation is None else {"v_activation": v_activation}), **({} if gate is None else {"gated": 1}),
    }  # fmt: skip
    uneven = length % LONGEST or chunk_size % LONGEST or any(next_power_of_two(n) != n for n in (depth, v.shape[3]))
    bfloat16 = _BFLOAT16 if mask is None and segment_ids is None and not uneven else _BFLOAT16 | _MASKED
    found, names = [], (FORWARD, *(() if gate is None else (GATE,)), DQ, DK, DV)
    for name in names[: 1 if slots else None]:
        large = _GATE if name == GATE else bfloat16[name][gpu.name] if q.dtype.itemsize == 2 else _FLOAT32[name]
        tiles = _fitting(large, length, max(length, slots), depth, v.shape[3])
        found.append(choose(name, gpu.name, shape, tiles, _take_all))
    return tuple(found)


def _take_all(tiles: AttentionTiles) -> None:
    pass


def _fitting(large: AttentionTiles, queries: int, keys: int, depth: int, width: int) -> AttentionTiles:
    least = lambda block, size: min(block, max(SMALLEST, next_power_of_two(size)))  # noqa: E731
    return replace(
        large,
        block_q=least(large.block_q, queries),
        block_k=least(large.block_k, keys),
        block_v=least(large.block_v, width),
        block_d=least(large.block_d, depth),
    )
