"""What is static about one call of timestep_norm, and what a program needs to find its tiles."""

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from pallas_kernels._backends.triton import load, pl
from pallas_kernels._tiles import Tiles, next_power_of_two


@dataclass(frozen=True)
class Problem:
    """Sizes and options of a call."""

    batch: int
    length: int
    features: int
    groups: int
    eps: float
    statistics: str

    @property
    def size(self) -> int:
        """Features per group."""
        return self.features // self.groups

    @property
    def lanes(self) -> int:
        """Features per group, rounded up to a power of two."""
        return next_power_of_two(self.size)

    def chunks(self, tiles: Tiles) -> tuple[int, int]:
        """(number of chunks, tokens per chunk): whole tiles, and no chunk without tokens."""
        blocks = -(-self.length // tiles.block_length)
        chunk = -(-blocks // tiles.num_chunks) * tiles.block_length
        return -(-self.length // chunk), chunk


class Arrays(NamedTuple):
    """The arguments that have gradients; mean and var are the incoming state's, None for the fresh one."""

    x: Float[Array, "B L D"]
    weight: Float32[Array, " D"] | None
    bias: Float32[Array, " D"] | None
    mean: Float32[Array, "B G"] | None
    var: Float32[Array, "B G"] | None


class Tokens(NamedTuple):
    """Which tokens count; every field is None where every token counts and there is one document.

    Attributes:
        valid: 1 for tokens that count, else 0.
        n: tokens that count, of the same document, up to and including each one; the incoming ones included.
        runs: number of the packed document (run) of each token, from 0; None without packed documents.
    """

    valid: Int32[Array, "B L"] | None = None
    n: Int32[Array, "B L"] | None = None
    runs: Int32[Array, "B L"] | None = None


class Cursor:
    """Where the program at hand is: grid (groups, batch, chunks), tiles of `block` tokens forward or back in time."""

    def __init__(self, problem: Problem, tiles: Tiles, *, reverse: bool = False):
        self.problem, self.block, self.reverse = problem, tiles.block_length, reverse
        self.group, self.row, self.chunk = (pl.program_id(axis) for axis in range(3))
        self.chunks, self.chunk_length = problem.chunks(tiles)
        self.start = self.chunk * self.chunk_length
        self.stop = jnp.minimum(self.start + self.chunk_length, problem.length)
        self.tiles = pl.cdiv(self.stop - self.start, self.block)
        self.ragged = problem.length % self.block != 0
        lane = jnp.arange(problem.lanes, dtype=jnp.int32)
        self.lanes = None if problem.lanes == problem.size else lane < problem.size
        self.columns = self.group * problem.size + lane

    @property
    def cell(self):
        """Index of this program's entry in a [B, C, G] array."""
        return self.row, self.chunk, self.group

    def times(self, tile):
        """(token number of each row of a tile, which of them exist or None for all)."""
        step = jnp.arange(self.block, dtype=jnp.int32)
        if self.reverse:
            tile, step = self.tiles - 1 - tile, self.block - 1 - step
        t = self.start + tile * self.block + step
        return t, (t < self.stop) if self.ragged else None

    def spread(self, tokens):
        """[T] -> [T, S], None staying None."""
        shape = (self.block, self.problem.lanes)
        return None if tokens is None else jnp.broadcast_to(tokens[:, None], shape)

    @property
    def inside(self):
        """[T, S] True on features of the group, None without padded lanes."""
        shape = (self.block, self.problem.lanes)
        return None if self.lanes is None else jnp.broadcast_to(self.lanes[None, :], shape)

    def tile(self, t, exists):
        """Index of a tile in a [B, L, D] array, and its mask."""
        columns = jnp.broadcast_to(self.columns[None, :], (self.block, self.problem.lanes))
        masks = [mask for mask in (self.spread(exists), self.inside) if mask is not None]
        return (self.row, self.spread(t), columns), (masks[0] & masks[-1] if masks else None)

    def runs(self, ref, t, exists):
        """Document numbers of a tile from a [B, L] array, -1 where there is no token."""
        runs = load(ref, (self.row, t), exists)
        return runs if exists is None else jnp.where(exists, runs, -1)

    def all_chunks(self):
        """(numbers of all chunks of this sequence, rounded up to a power of two; which of them exist)."""
        number = jnp.arange(next_power_of_two(self.chunks), dtype=jnp.int32)
        return number, number < self.chunks

    def parameter(self, ref):
        """The group's part of a [D] parameter; None for None."""
        return None if ref is None else load(ref, (self.columns,), self.lanes)
