"""Tiles of the kernels of feature_norm: the heuristic, and when a problem is too large.

Memory is the limit. A tile has all features of its tokens, sixteen numbers in each thread; more features take more
warps. There are no more programs than fit the multiprocessors at once, each of which walks over its tiles: gain and
bias, wider than a token, are read once for all of them, and the backward writes their sums once.
"""

from pallas_kernels._architecture import Architecture
from pallas_kernels._tiles import Tiles, at_most, next_power_of_two
from pallas_kernels._tuning import choose
from pallas_kernels.feature_norm.launch import BACKWARD, FORWARD

MAX_FEATURES = 8192
_OF_A_WARP = 512  # numbers
_WARPS = {FORWARD: 4, BACKWARD: 8}  # of a program, at least
_RESIDENT = {FORWARD: 24, BACKWARD: 16}  # warps on a multiprocessor


def refuse(x, *args, **kwargs) -> str | None:
    """Why no kernel takes this problem, or None."""
    features = x.shape[2]
    if features > MAX_FEATURES:
        return f"{features} features of a token do not fit registers; at most {MAX_FEATURES} do"
    return None


def launches(gpu: Architecture, x, weight=None, bias=None, *, centred: bool, **kwargs):
    """Both kernels with their tiles."""
    batch, length, features = x.shape
    tokens, lanes, found = batch * length, next_power_of_two(features), []
    shape = {"tokens": tokens, "features": features, "dtype": x.dtype.name, "centred": int(centred)}
    for name, least in _WARPS.items():
        warps = max(least, lanes // _OF_A_WARP)
        elements = warps * _OF_A_WARP
        block = max(1, min(next_power_of_two(tokens), elements // lanes))
        chunks = min(-(-tokens // block), gpu.multiprocessors * (_RESIDENT[name] // warps))
        most = at_most(max(1, 4 * elements // lanes))
        found.append(choose(name, gpu.name, shape, Tiles(block, chunks, warps), most))
    return tuple(found)
