"""Tiles of the ComplexEMA kernels: the heuristic, and when a problem is too large.

A program is one warp that walks over one chunk, and arithmetic is the limit: a GPU wants WARPS of them on every
multiprocessor, which is what their registers allow. Where batch x features / 32 alone gives as many, one pass is
enough; otherwise a sequence is cut into chunks, at the price of walking over it twice. A chunk has no more than LONGEST
steps in any case: rounding errors add up along it, and the joining of chunks starts them afresh.
"""

from pallas_kernels._tiles import Architecture, Launch, Tiles
from pallas_kernels._tuning import choose
from pallas_kernels.complex_ema.launch import BACKWARD, FORWARD
from pallas_kernels.complex_ema.math import STEADY
from pallas_kernels.complex_ema.problem import LANES

MAX_STATES = 32
LONGEST, SHORTEST = 256, 64
FORWARD_BLOCK, BACKWARD_BLOCK = 8, 4
_WARPS = {FORWARD: 16, BACKWARD: 8}


def refuse(x, p, *args, **kwargs) -> str | None:
    """Why no kernel takes this problem, or None."""
    if p.shape[1] > MAX_STATES:
        return f"{p.shape[1]} states per feature do not fit the registers; at most {MAX_STATES} do"
    return f"a batch of {x.shape[0]} does not fit a grid axis; at most 65535 do" if x.shape[0] > 65535 else None


def launches(gpu: Architecture, x, p, *args, segment_ids=None, **kwargs):
    """Both kernels with their tiles; the smaller kernels in between follow them."""
    batch, length, features = x.shape
    shape = {
        "batch": batch, "length": length, "features": features, "states": p.shape[1], "dtype": x.dtype.name,
        "packed": int(segment_ids is not None),
    }  # fmt: skip
    programs = batch * -(-features // LANES)
    return tuple(
        Launch(
            name, *choose(name, gpu.name, shape, Tiles(block, _chunks(length, programs, _WARPS[name], gpu), 1), STEADY)
        )
        for name, block in ((FORWARD, FORWARD_BLOCK), (BACKWARD, BACKWARD_BLOCK))
    )


def _chunks(length: int, programs: int, warps: int, gpu: Architecture) -> int:
    filling = gpu.multiprocessors * warps // programs
    return max(1, min(filling, length // SHORTEST), -(-length // LONGEST))
