"""Tiles of the kernels of normalized_rotary: the heuristic, and when a problem is too large.

Memory is the limit. A tile is what a program of four warps holds in registers without spilling; the forward has a
program for each tile, the backward walks over a few, as it writes a sum over its tokens for each feature.
"""

from pallas_kernels._architecture import Architecture
from pallas_kernels._tiles import Tiles, at_most, next_power_of_two, too_many
from pallas_kernels._tuning import choose
from pallas_kernels.normalized_rotary.launch import BACKWARD, FORWARD

MAX_DEPTH = 1024
_WARPS = 4
_ELEMENTS = {FORWARD: 4096, BACKWARD: 2048}
_PROGRAMS = 4  # of the backward, on a multiprocessor


def refuse(z, *args, **kwargs) -> str | None:
    """Why no kernel takes this problem, or None."""
    batch, _, heads, depth = z.shape
    if depth > MAX_DEPTH:
        return f"head dim {depth} does not fit a tile; at most {MAX_DEPTH} does"
    return too_many("a batch of", batch) or too_many("a number of heads of", heads)


def launches(gpu: Architecture, z, *args, interleaved: bool = False, **kwargs):
    """Both kernels with their tiles."""
    batch, length, heads, depth = z.shape
    shape = {
        "batch": batch, "length": length, "heads": heads, "depth": depth, "dtype": z.dtype.name,
        "interleaved": int(interleaved),
    }  # fmt: skip
    lanes, found = next_power_of_two(depth), []
    for name, elements in _ELEMENTS.items():
        block = max(1, min(next_power_of_two(length), elements // lanes))
        chunks = -(-length // block)
        if name == BACKWARD:
            chunks = min(chunks, -(-_PROGRAMS * gpu.multiprocessors // (batch * heads)))
        tiles = Tiles(block, chunks, _WARPS)
        found.append(choose(name, gpu.name, shape, tiles, at_most(4 * elements // lanes)))
    return tuple(found)
