"""What is static about one call of complex_ema, and what a program needs to find its place."""

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Complex64, Float, Float32, Int32

from pallas_kernels._backends.triton import load, pl
from pallas_kernels._tiles import Tiles
from pallas_kernels.complex_ema.math import STEADY

LANES = 32  # features of one warp


@dataclass(frozen=True)
class Problem:
    """Sizes of a call."""

    batch: int
    length: int
    features: int
    states: int

    def chunks(self, tiles: Tiles) -> tuple[int, int]:
        """(number of chunks, steps per chunk): whole stretches of STEADY steps, and no chunk without steps."""
        stretches = -(-self.length // STEADY)
        chunk = -(-stretches // tiles.num_chunks) * STEADY
        return -(-self.length // chunk), chunk


class Arrays(NamedTuple):
    """The arguments of complex_ema that have gradients."""

    x: Float[Array, "B L D"]
    p: Float32[Array, "D N"]
    q: Complex64[Array, "D N"]
    gamma: Complex64[Array, "D N"]
    omega: Float32[Array, " D"] | None
    h0: Complex64[Array, "B D N"] | None


class Tokens(NamedTuple):
    """Where something happens beside the plain walk; a field is None where it never does.

    Attributes:
        valid: 1 for inputs that count.
        resets: 1 where the state that comes in, on the walk at hand, is thrown away.
        special: token whose state is returned, or takes a cotangent.
    """

    valid: Int32[Array, "B L"] | None = None
    resets: Int32[Array, "B L"] | None = None
    special: Int32[Array, " B"] | None = None


class Cursor:
    """Where the program at hand is: grid (blocks of features, chunks, batch).

    `skipped` is the number of chunks at the beginning that have no program. Steps are counted in the direction of the
    walk; the time of a step is `time(step)`.
    """

    def __init__(self, problem: Problem, tiles: Tiles, *, reverse: bool, skipped: int = 0):
        self.problem, self.block, self.reverse = problem, tiles.block_length, reverse
        self.place, self.row = pl.program_id(1), pl.program_id(2)
        self.chunk = self.place + skipped
        _, length = problem.chunks(tiles)
        self.start = self.chunk * length
        self.stop = jnp.minimum(self.start + length, problem.length)
        self.steps = self.stop - self.start
        self.ragged = problem.length % self.block != 0
        self.width = LANES * tiles.num_warps
        self.columns = pl.program_id(0) * self.width + jnp.arange(self.width, dtype=jnp.int32)
        self.lanes = None if problem.features % self.width == 0 else self.columns < problem.features

    def time(self, step):
        """Token number of a step."""
        return self.stop - 1 - step if self.reverse else self.start + step

    def tile(self, step):
        """Index of the BLOCK steps from `step` on in a [B, L, D] array, in the order of the walk, and its mask."""
        t = self.time(step + jnp.arange(self.block, dtype=jnp.int32))
        shape = (self.block, self.width)
        exists = None if not self.ragged else jnp.broadcast_to(((t >= self.start) & (t < self.stop))[:, None], shape)
        inside = None if self.lanes is None else jnp.broadcast_to(self.lanes[None, :], shape)
        masks = [mask for mask in (exists, inside) if mask is not None]
        index = (self.row, jnp.broadcast_to(t[:, None], shape), jnp.broadcast_to(self.columns[None, :], shape))
        return index, (masks[0] & masks[-1] if masks else None)

    def constants(self, state: int, *refs):
        """This program's features of one state, of each [N, D] array."""
        return [load(ref, (state, self.columns), self.lanes) for ref in refs]

    def masked(self, hit):
        """Mask of the features, all False unless `hit`."""
        mask = jnp.full((self.width,), hit)
        return mask if self.lanes is None else mask & self.lanes

    def cell(self, state: int):
        """Index of this program's features of one state in a [B, programs, N, D] array."""
        return self.row, self.place, state, self.columns
