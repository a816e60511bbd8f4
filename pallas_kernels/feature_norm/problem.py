"""What is static about one call of feature_norm, and how a program finds its tiles."""

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from pallas_kernels._backends.triton import load, pl, store
from pallas_kernels._tiles import Tiles, next_power_of_two


@dataclass(frozen=True)
class Problem:
    """Sizes and options of a call; tokens are those of all rows of the batch."""

    tokens: int
    features: int
    centred: bool
    minus_one: bool
    eps: float

    def chunks(self, tiles: Tiles) -> tuple[int, int]:
        """(number of chunks, tokens per chunk): whole tiles, and no chunk without tokens."""
        blocks = -(-self.tokens // tiles.block_length)
        chunk = -(-blocks // tiles.num_chunks) * tiles.block_length
        return -(-self.tokens // chunk), chunk


class Arrays(NamedTuple):
    """The arguments that have gradients."""

    x: Float[Array, "B L D"]
    weight: Float32[Array, " D"] | None = None
    bias: Float32[Array, " D"] | None = None


class Cursor:
    """Where the program at hand is: grid (chunks), a walk over tiles of `block` tokens with all their features."""

    def __init__(self, problem: Problem, tiles: Tiles):
        self.problem, self.block = problem, tiles.block_length
        self.chunk = pl.program_id(0)
        _, length = problem.chunks(tiles)
        self.start = self.chunk * length
        self.stop = jnp.minimum(self.start + length, problem.tokens)
        self.tiles = pl.cdiv(self.stop - self.start, self.block)
        self.feature = jnp.arange(next_power_of_two(problem.features), dtype=jnp.int32)
        self.inside = None if problem.features == self.feature.size else self.feature < problem.features
        self.shape = (self.block, self.feature.size)

    def _index(self, tile):
        t = self.start + tile * self.block + jnp.arange(self.block, dtype=jnp.int32)
        exists = None if self.problem.tokens % self.block == 0 else t < self.stop
        spread = ((exists, (slice(None), None)), (self.inside, (None, slice(None))))
        masks = [jnp.broadcast_to(mask[expand], self.shape) for mask, expand in spread if mask is not None]
        index = (jnp.broadcast_to(t[:, None], self.shape), jnp.broadcast_to(self.feature[None], self.shape))
        return index, (masks[0] & masks[-1] if masks else None)

    def load(self, ref, tile):
        """A tile of an array [T, D], in float32."""
        return load(ref, *self._index(tile)).astype(jnp.float32)

    def store(self, ref, tile, value) -> None:
        """Write a tile of an array [T, D]."""
        index, mask = self._index(tile)
        store(ref, index, value, mask)

    def parameter(self, ref):
        """An array [D], or None if there is none."""
        return None if ref is None else load(ref, (self.feature,), self.inside)

    def store_sum(self, ref, value) -> None:
        """This program's part of an array [C, D] of sums."""
        store(ref, (self.chunk, self.feature), value, self.inside)
