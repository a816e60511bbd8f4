"""Kernels that form matrix products: what their heuristics for tiles share, and how a sum is split between programs.

A program keeps block_m x block_n sums in registers and loads tiles of both operands ahead into shared memory. What each
architecture has of both gives the blocks; each problem has no more than its own sizes of them.
"""

from dataclasses import replace

from pallas_kernels._architecture import Architecture
from pallas_kernels._tiles import LinearTiles, next_power_of_two, too_many

SMALLEST = 16  # rows and columns of a matrix product

_T = LinearTiles  # block_m, block_n, block_k, num_warps, num_stages
_BFLOAT16 = {
    "sm_80": _T(128, 128, 32, 8, 3),
    "sm_89": _T(128, 128, 32, 8, 3),
    "sm_90": _T(128, 128, 64, 8, 3),
    "sm_100": _T(128, 128, 64, 8, 3),
    "sm_120": _T(128, 128, 32, 8, 3),
}
FLOAT32 = _T(64, 64, 32, 8, 1)


def product_tiles(gpu: Architecture, dtype, m: int, n: int, k: int, wide: LinearTiles | None = None) -> LinearTiles:
    """Tiles for m rows, n columns and sums of k terms; of bfloat16 `wide` ones where no load of theirs is masked."""
    large = _BFLOAT16[gpu.name] if dtype.itemsize == 2 else FLOAT32
    if wide is not None and dtype.itemsize == 2 and not (m % wide.block_m or n % wide.block_n or k % wide.block_k):
        large = wide
    least = lambda block, size: min(block, max(SMALLEST, next_power_of_two(size)))  # noqa: E731
    return replace(
        large, block_m=least(large.block_m, m), block_n=least(large.block_n, n), block_k=least(large.block_k, k)
    )


def filling(gpu: Architecture, tiles: LinearTiles, m: int, n: int) -> LinearTiles:
    """The tiles, with sums split where the programs of m rows and n columns fill less than half of the GPU."""
    programs = -(-m // tiles.block_m) * -(-n // tiles.block_n)
    return replace(tiles, num_splits=max(1, gpu.multiprocessors // programs))


def splits(terms: int, tiles: LinearTiles) -> tuple[int, int]:
    """(number of splits of sums of so many terms, blocks in each): no split is without terms."""
    blocks = -(-terms // tiles.block_k)
    each = -(-blocks // tiles.num_splits)
    return -(-blocks // each), each


def crowded(blocks: int) -> str | None:
    """Why a grid has no room for so many blocks, or None."""
    return too_many("a number of blocks of", blocks)
