"""Tiles of the kernels of fused_linear: the heuristic, and when a problem is too large.

A program keeps block_m x block_n sums in registers and loads tiles of both operands ahead into shared memory. What each
architecture has of both gives the blocks; each problem has no more than its own sizes of them.

Where registers allow, two programs share a multiprocessor, so that one forms sums while the other ends. An activation
is made anew for each block of outputs, by two instructions of a slow unit (exp2 and a reciprocal), which on the H100
take twice as long as the tensor cores do with 128 outputs: there the forward's blocks are wider. Sums over tokens are
split where a GPU would be half empty: each split is a copy of the gradient, in float32.
"""

from dataclasses import replace

from pallas_kernels._architecture import Architecture
from pallas_kernels._tiles import Launch, LinearTiles, next_power_of_two, too_many
from pallas_kernels._tuning import choose
from pallas_kernels.fused_linear.launch import DW, DX, FORWARD

SMALLEST = 16  # rows and columns of a matrix product

_T = LinearTiles  # block_m, block_n, block_k, num_warps, num_stages
_BFLOAT16 = {
    "sm_80": _T(128, 128, 32, 8, 3),
    "sm_89": _T(128, 128, 32, 8, 3),
    "sm_90": _T(128, 128, 64, 8, 3),
    "sm_100": _T(128, 128, 64, 8, 3),
    "sm_120": _T(128, 128, 32, 8, 3),
}
_ACTIVATED = {"sm_90": _T(128, 256, 64, 8, 3)}  # forward, where no load is masked
_FLOAT32 = _T(64, 64, 32, 8, 1)


def refuse(x, weight, *args, **kwargs) -> str | None:
    """Why no kernel takes this problem, or None."""
    elements = x.shape[0] * x.shape[1] * weight.shape[0]
    if elements >= 2**31:
        return f"a result of {elements} elements is too large; at most 2^31 - 1 are numbered"
    return _crowded(-(-x.shape[0] * x.shape[1] // _FLOAT32.block_m)) or _crowded(-(-weight.shape[0] // SMALLEST))


def launches(gpu: Architecture, x, weight, bias=None, *, x_bias=None, residual=None, activation=None):
    """Every kernel with its tiles."""
    tokens, features, outputs = x.shape[0] * x.shape[1], x.shape[2], weight.shape[0]
    shape = {
        "tokens": tokens, "features": features, "outputs": outputs, "dtype": x.dtype.name,
        "activation": activation or "none", "x_bias": int(x_bias is not None), "residual": int(residual is not None),
    }  # fmt: skip
    found, activated = [], activation is not None
    sizes = {FORWARD: (tokens, outputs, features), DX: (tokens, features, outputs), DW: (outputs, features, tokens)}
    for name, (m, n, k) in sizes.items():
        large = _bfloat16(gpu, name == FORWARD and activated, m, n, k) if x.dtype.itemsize == 2 else _FLOAT32
        tiles = _fitting(large, m, n, k)
        if name == DW:
            programs = -(-m // tiles.block_m) * -(-n // tiles.block_n)
            tiles = replace(tiles, num_splits=max(1, gpu.multiprocessors // programs))
        refused = lambda tiles, rows=m: _crowded(-(-rows // tiles.block_m))  # noqa: E731
        found.append(Launch(name, *choose(name, gpu.name, shape, tiles, refused)))
    return tuple(found)


def _crowded(blocks: int) -> str | None:
    return too_many("a number of blocks of", blocks)


def _bfloat16(gpu: Architecture, activated: bool, m: int, n: int, k: int) -> LinearTiles:
    wide = _ACTIVATED.get(gpu.name) if activated else None
    if wide is None or m % wide.block_m or n % wide.block_n or k % wide.block_k:
        return _BFLOAT16[gpu.name]
    return wide


def _fitting(large: LinearTiles, m: int, n: int, k: int) -> LinearTiles:
    least = lambda block, size: min(block, max(SMALLEST, next_power_of_two(size)))  # noqa: E731
    return replace(
        large, block_m=least(large.block_m, m), block_n=least(large.block_n, n), block_k=least(large.block_k, k)
    )
