"""What is static about one call of normalized_rotary, and how a program finds its tiles."""

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from pallas_kernels._backends.triton import load, pl, store
from pallas_kernels._tiles import Tiles, next_power_of_two
from pallas_kernels.normalized_rotary import math
from pallas_kernels.normalized_rotary.math import Pair


@dataclass(frozen=True)
class Problem:
    """Sizes and options of a call; `depth` is the head dim."""

    batch: int
    length: int
    heads: int
    depth: int
    eps: float
    base: float
    interleaved: bool
    scale_offset: float
    scale_factor: float

    @property
    def pairs(self) -> int:
        """Angles."""
        return self.depth // 2

    def chunks(self, tiles: Tiles) -> tuple[int, int]:
        """(number of chunks, tokens per chunk): whole tiles, and no chunk without tokens."""
        blocks = -(-self.length // tiles.block_length)
        chunk = -(-blocks // tiles.num_chunks) * tiles.block_length
        return -(-self.length // chunk), chunk


class Arrays(NamedTuple):
    """The arguments that have gradients; entry 0 of scale and shift is for queries, 1 for keys."""

    z: Float[Array, "B L H K"]
    scale: Float32[Array, "2 H K"]
    shift: Float32[Array, "2 H K"]
    bias: Float32[Array, "H K"] | None = None


class Cursor:
    """Where the program at hand is: grid (chunks, heads, batch), a walk over tiles of `block` tokens."""

    def __init__(self, problem: Problem, tiles: Tiles):
        self.problem, self.block = problem, tiles.block_length
        self.chunk, self.head, self.row = (pl.program_id(axis) for axis in range(3))
        _, length = problem.chunks(tiles)
        self.start = self.chunk * length
        self.stop = jnp.minimum(self.start + length, problem.length)
        self.tiles = pl.cdiv(self.stop - self.start, self.block)
        self.angle = jnp.arange(next_power_of_two(problem.pairs), dtype=jnp.int32)
        self.inside = None if problem.pairs == self.angle.size else self.angle < problem.pairs
        step, offset = (2, 1) if problem.interleaved else (1, problem.pairs)
        self.features = Pair(step * self.angle, step * self.angle + offset)

    def tokens(self, tile):
        """(token number of each row of a tile, which of them exist or None for all)."""
        t = self.start + tile * self.block + jnp.arange(self.block, dtype=jnp.int32)
        return t, None if self.problem.length % self.block == 0 else t < self.stop

    def _index(self, t, exists, features):
        shape = (self.block, self.angle.size)
        spread = ((exists, (slice(None), None)), (self.inside, (None, slice(None))))
        masks = [jnp.broadcast_to(mask[expand], shape) for mask, expand in spread if mask is not None]
        index = (self.row, jnp.broadcast_to(t[:, None], shape), self.head, jnp.broadcast_to(features[None], shape))
        return index, (masks[0] & masks[-1] if masks else None)

    def load(self, ref, t, exists) -> Pair:
        """A tile of an array [B, L, H, K], in float32."""
        return Pair(*(load(ref, *self._index(t, exists, part)).astype(jnp.float32) for part in self.features))

    def store(self, ref, t, exists, value: Pair) -> None:
        """Write a tile of an array [B, L, H, K]."""
        for part, features in zip(value, self.features, strict=True):
            index, mask = self._index(t, exists, features)
            store(ref, index, part, mask)

    def parameters(self, ref) -> tuple[Pair, Pair]:
        """This head's part of an array [2, H, K]: for queries, for keys."""
        queries, keys = (
            Pair(*(load(ref, (which, self.head, part), self.inside) for part in self.features)) for which in (0, 1)
        )
        return queries, keys

    def factors(self, ref) -> tuple[Pair, Pair]:
        """What scales this head's queries and keys, of `scale`."""
        offset, factor = self.problem.scale_offset, self.problem.scale_factor
        queries, keys = (math.factors(scale, offset, factor) for scale in self.parameters(ref))
        return queries, keys

    def bias(self, ref) -> Pair:
        """This head's part of an array [H, K]."""
        a, b = (load(ref, (self.head, part), self.inside) for part in self.features)
        return Pair(a, b)

    def store_sum(self, ref, total: Pair, *which: int) -> None:
        """This program's part of an array [B, C, H, K], or of [B, C, 2, H, K] with `which`."""
        for part, features in zip(total, self.features, strict=True):
            store(ref, (self.row, self.chunk, *which, self.head, features), part, self.inside)
