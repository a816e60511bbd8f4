"""What is static about one call of fused_linear, and how a program finds its tiles."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32

from pallas_kernels._backends.triton import load, store
from pallas_kernels._tiles import LinearTiles
from pallas_kernels.fused_linear.math import Activation
from reference.fused_linear import Layer


@dataclass(frozen=True)
class Problem:
    """Sizes and options of a call: rows of x over all of the batch and its features; of each layer, how many outputs
    it has and whether it has a residual.
    """

    tokens: int
    features: int
    outputs: tuple[int, ...]
    residual: tuple[bool, ...]
    activation: Activation

    def blocks(self, size: int) -> tuple[int, ...]:
        """Blocks of outputs of each layer."""
        return tuple(-(-outputs // size) for outputs in self.outputs)


class Arrays(NamedTuple):
    """The arguments that have gradients."""

    x: Float[Array, "B L D"]
    layers: tuple[Layer, ...]
    x_bias: Float32[Array, " D"] | None = None
    gate: Float[Array, "B L D"] | None = None
    gate_bias: Float32[Array, " D"] | None = None


@jax.tree_util.register_static
@dataclass(frozen=True)
class Asked:
    """Which gradients anybody asks for: of what is in front of the products, of weights and biases. Those of residuals
    cost nothing.
    """

    front: bool
    layers: bool

    @staticmethod
    def of(arrays: Arrays) -> "Asked":
        """By a bool in place of every array."""
        layers = any(jax.tree.leaves([layer._replace(residual=None) for layer in arrays.layers]))
        return Asked(any(jax.tree.leaves(arrays._replace(layers=()))), layers)

    def only(self, found: Arrays) -> Arrays:
        """These gradients without those that nobody asks for."""
        if not self.layers:
            found = found._replace(layers=tuple(layer._replace(weight=None, bias=None) for layer in found.layers))
        return found if self.front else found._replace(x=None, x_bias=None, gate=None, gate_bias=None)


def by_layer(**arrays: Sequence[Any]) -> dict[str, Any]:
    """One entry for each layer, by name and number."""
    return {f"{name}_{number}": array for name, each in arrays.items() for number, array in enumerate(each)}


def of_layer(refs: SimpleNamespace, layer: int, *names: str) -> tuple[Any, ...]:
    """Those of one layer; None where it has none."""
    return tuple(getattr(refs, f"{name}_{layer}") for name in names)


class Block(NamedTuple):
    """Indices along an axis, and which of them exist; None for all."""

    indices: Int32[Array, " N"]
    exist: Bool[Array, " N"] | None

    @staticmethod
    def of(number, size: int, extent: int) -> "Block":
        """Block `number` of `size` along an axis of `extent`."""
        indices = number * size + jnp.arange(size, dtype=jnp.int32)
        return Block(indices, None if extent % size == 0 else indices < extent)


def no_sums(tiles: LinearTiles) -> Float32[Array, "M N"]:
    """What the sums of a program begin with."""
    return jnp.zeros((tiles.block_m, tiles.block_n), jnp.float32)


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
