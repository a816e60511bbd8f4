"""Tiles of the ComplexEMA kernels: the heuristic, and when a problem is too large.

A program is one warp that walks over one chunk, and arithmetic is the limit: a GPU wants as many of them on every
multiprocessor as the registers of 16 states allow (16, backward 8). Where batch x features / 32 alone gives more than
half as many, one pass is enough; otherwise a sequence is cut into chunks, at the price of walking over it twice.

Rounding errors add up along a chunk. So where a float32 result tells (a float32 y, a returned state, the gradients of
the coefficients) the heuristic makes no chunk longer than LONGEST steps, as far as a grid has room for the chunks. The
states between chunks take memory and time: with bfloat16 inputs, of whose results few are float32, chunks are longer.

The forward of a call that is differentiated takes the chunks of the backward, whose states it saves.
"""

import jax.numpy as jnp

from pallas_kernels._architecture import Architecture
from pallas_kernels._tiles import GRID_AXIS, Tiles, at_most, too_many
from pallas_kernels._tuning import choose
from pallas_kernels.complex_ema.launch import BACKWARD, FORWARD
from pallas_kernels.complex_ema.math import STEADY
from pallas_kernels.complex_ema.problem import LANES, Problem

MAX_STATES = 32
SHORTEST = 64
LONGEST = {"float32": 64, "bfloat16": 256}


def refuse(x, p, *args, **kwargs) -> str | None:
    """Why no kernel takes this problem, or None."""
    if p.shape[1] > MAX_STATES:
        return f"{p.shape[1]} states per feature do not fit the registers; at most {MAX_STATES} do"
    return too_many("a batch of", x.shape[0])


def launches(gpu: Architecture, x, p, *args, segment_ids=None, return_state=False, **kwargs):
    """Both kernels with their tiles; the smaller kernels in between follow them."""
    batch, length, features = x.shape
    shape = {
        "batch": batch, "length": length, "features": features, "states": p.shape[1], "dtype": x.dtype.name,
        "packed": int(segment_ids is not None), "state": int(return_state),
    }  # fmt: skip
    programs, longest = batch * -(-features // LANES), LONGEST[x.dtype.name]
    only_rounded = x.dtype == jnp.bfloat16 and not return_state
    problem, found = Problem(batch, length, features, p.shape[1]), []
    for name, block, warps, most in (
        (FORWARD, 8, 16, length if only_rounded else longest),
        (BACKWARD, 4, 8, longest),
    ):
        filling = gpu.multiprocessors * warps // programs
        wanted = min(GRID_AXIS, max(1, min(filling, length // SHORTEST), -(-length // most)))
        tiles = Tiles(block, problem.chunks(Tiles(block, wanted, 1))[0], 1)
        found.append(choose(name, gpu.name, shape, tiles, at_most(STEADY)))
    return tuple(found)
