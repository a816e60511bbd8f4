"""Tiles of the TimestepNorm kernels: the heuristic, and when a problem is too large for a tile.

A program keeps its whole tile in registers, so tokens x lanes is bounded, and loads the next one meanwhile: 16 KB of x,
or of x and dy, in flight per program keep the memory busy. Beside its tile the backward holds weight, dweight, dbias.
One pass over memory wants a program for every multiprocessor from batch x groups alone; below that a sequence is cut
into chunks, at the price of reading it twice.
"""

from pallas_kernels._architecture import Architecture
from pallas_kernels._tiles import Tiles, at_most, next_power_of_two, too_many
from pallas_kernels._tuning import choose
from pallas_kernels.timestep_norm.launch import BACKWARD, FORWARD

MAX_LANES = 4096
_LONGEST, _MIN_CHUNK_TILES = 256, 2
_ELEMENTS, _ELEMENTS_PER_WARP = 4096, 1024  # of a tile
_MAX_ELEMENTS = 16 * _ELEMENTS
_PARAMETER_ROWS = 3


def refuse(x, *args, num_groups: int, **kwargs) -> str | None:
    """Why no kernel takes this problem, or None."""
    batch, _, features = x.shape
    if next_power_of_two(features // num_groups) > MAX_LANES:
        return f"a group of {features // num_groups} features does not fit a tile; at most {MAX_LANES} do"
    return too_many("a batch of", batch)


def launches(gpu: Architecture, x, *args, num_groups: int, statistics: str = "token_mean", **kwargs):
    """Both kernels with their tiles."""
    batch, length, features = x.shape
    shape = {
        "batch": batch, "length": length, "features": features, "groups": num_groups, "dtype": x.dtype.name,
        "statistics": statistics,
    }  # fmt: skip
    lanes, programs = next_power_of_two(features // num_groups), batch * num_groups
    # "all_features" squares every deviation once more: with long tiles two programs would not fit a multiprocessor.
    forward = 2 * _ELEMENTS if statistics == "token_mean" and x.dtype.itemsize == 2 else _ELEMENTS
    return tuple(
        choose(
            name,
            gpu.name,
            shape,
            _heuristic(length, lanes, programs, elements, gpu),
            at_most(_MAX_ELEMENTS // lanes),
        )
        for name, elements in ((FORWARD, forward), (BACKWARD, _ELEMENTS))
    )


def _heuristic(length: int, lanes: int, programs: int, elements: int, gpu: Architecture) -> Tiles:
    block = max(1, min(_LONGEST, next_power_of_two(length), elements // lanes))
    chunks = 1
    if programs < gpu.multiprocessors:
        chunks = max(1, min(-(-2 * gpu.multiprocessors // programs), -(-length // block) // _MIN_CHUNK_TILES))
    warps = max(1, min(8, (block + _PARAMETER_ROWS) * lanes // _ELEMENTS_PER_WARP))
    return Tiles(block, chunks, 1 << (warps.bit_length() - 1))
