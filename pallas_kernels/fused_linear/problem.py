"""What is static about one call of fused_linear, and how a program finds its tiles."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32

from pallas_kernels._backends.triton import load, store
from pallas_kernels._tiles import LinearTiles
from pallas_kernels.fused_linear.math import Activation


@dataclass(frozen=True)
class Problem:
    """Sizes and options of a call: rows of x over all of the batch, features of x and of the result."""

    tokens: int
    features: int
    outputs: int
    activation: Activation
    residual: bool

    def splits(self, tiles: LinearTiles) -> tuple[int, int]:
        """(number of splits of the tokens, blocks in each): no split is without tokens."""
        blocks = -(-self.tokens // tiles.block_k)
        each = -(-blocks // tiles.num_splits)
        return -(-blocks // each), each


class Arrays(NamedTuple):
    """The arguments that have gradients."""

    x: Float[Array, "B L D"]
    weight: Float[Array, "O D"]
    bias: Float32[Array, " O"] | None = None
    x_bias: Float32[Array, " D"] | None = None
    residual: Float[Array, "B L O"] | None = None


class Block(NamedTuple):
    """Indices along an axis, and which of them exist; None for all."""

    indices: Int32[Array, " N"]
    exist: Bool[Array, " N"] | None

    @staticmethod
    def of(number, size: int, extent: int) -> "Block":
        """Block `number` of `size` along an axis of `extent`."""
        indices = number * size + jnp.arange(size, dtype=jnp.int32)
        return Block(indices, None if extent % size == 0 else indices < extent)


def load_tile(ref, rows: Block, columns: Block) -> jax.Array:
    """A tile of a matrix, 0 where it has no entry."""
    return load(ref, *_tile(rows, columns))


def store_tile(ref, rows: Block, columns: Block, value, *front) -> None:
    """Write a tile of a matrix, of that at `front` where there are several."""
    index, mask = _tile(rows, columns)
    store(ref, (*front, *index), value, mask)


def load_row(ref, columns: Block) -> jax.Array | None:
    """Part of a vector; None for None."""
    return None if ref is None else load(ref, columns.indices, columns.exist)


def _tile(rows: Block, columns: Block):
    shape = (rows.indices.size, columns.indices.size)
    down = lambda a: jnp.broadcast_to(a[:, None], shape)  # noqa: E731
    across = lambda a: jnp.broadcast_to(a[None], shape)  # noqa: E731
    masks = [spread(block.exist) for spread, block in ((down, rows), (across, columns)) if block.exist is not None]
    return (down(rows.indices), across(columns.indices)), (masks[0] & masks[-1] if masks else None)
