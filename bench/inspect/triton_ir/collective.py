"""Operations across the lanes of a tile: matrix products, reductions, prefix sums.

The order of the additions is not the GPU's, which depends on the layout the compiler picks: reductions are balanced
trees of neighbours, scans are Hillis and Steele's, products are the CPU library's. Results agree with the
GPU's up to the rounding of a sum, not bit by bit.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bench.inspect.triton_ir.mlir import Op
from bench.inspect.triton_ir.numerics import bf16_part, tf32
from bench.inspect.triton_ir.shapes import materialise

Function = Callable[..., Any]
Product = Callable[[np.ndarray, np.ndarray], np.ndarray]
Combine = Callable[[Sequence[Any]], tuple[Any, ...]]

_TF32, _TF32_X3, _IEEE, _BF16_X3, _BF16_X6 = range(5)  # tt.InputPrecision


def _one_pass(part: Callable[[np.ndarray], np.ndarray]) -> Product:
    return lambda a, b: np.matmul(part(a), part(b))


def _parts(part: Callable[[np.ndarray], np.ndarray], terms: int) -> Product:
    """Each operand as a sum of low-precision parts; products of parts i and j with i + j < terms."""

    def decompose(x: np.ndarray) -> list[np.ndarray]:
        parts = []
        for _ in range(terms):
            parts.append(part(x))
            x = x - parts[-1]
        return parts

    def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        left, right = decompose(a), decompose(b)
        total = np.zeros((a.shape[0], b.shape[1]), np.float32)
        for order in reversed(range(terms)):  # smallest first
            for i in range(order + 1):
                total += np.matmul(left[i], right[order - i])
        return total

    return product


_PRODUCTS: dict[int, Product] = {
    _TF32: _one_pass(tf32),
    _TF32_X3: _parts(tf32, 2),
    _IEEE: np.matmul,
    _BF16_X3: _parts(bf16_part, 2),
    _BF16_X6: _parts(bf16_part, 3),
}


def dot(op: Op) -> Function:
    """A matrix product plus an accumulator; float32 operands as `inputPrecision` says, integers exactly."""
    shape_a, shape_b = op.operand(0).shape, op.operand(1).shape
    source, target = op.operand(0).dtype, op.result.dtype
    wide = np.dtype(np.int32 if source.kind == "i" else np.float64 if source == np.float64 else np.float32)
    product: Product = np.matmul
    if source == np.float32:
        precision = op.integer("inputPrecision", _TF32)
        if precision not in _PRODUCTS:
            raise op.unsupported(f"input precision {precision}")
        product = _PRODUCTS[precision]

    def function(a: Any, b: Any, accumulator: Any) -> Any:
        left = materialise(a, shape_a).astype(wide, copy=False)
        right = materialise(b, shape_b).astype(wide, copy=False)
        total = accumulator.astype(wide) if _vanishes(left, right) else product(left, right) + accumulator.astype(wide)
        return total.astype(target, copy=False)

    return function


def _vanishes(left: np.ndarray, right: np.ndarray) -> bool:
    """Whether a product is 0: where only addresses are checked all that is loaded is, and this is quicker."""
    return not (left.any() and right.any()) and bool(np.isfinite(left).all() and np.isfinite(right).all())


def reduce(op: Op, combine: Combine) -> Function:
    """Combine neighbours along an axis until one is left."""
    shape, axis = op.operand(0).shape, op.integer("axis")
    before = (slice(None),) * axis
    even, odd = (*before, slice(0, None, 2)), (*before, slice(1, None, 2))
    first = (*before, 0)

    def function(*values: Any) -> Any:
        tiles: Sequence[Any] = [materialise(value, shape) for value in values]
        length = shape[axis]
        while length > 1:
            halves = combine([*(tile[even] for tile in tiles), *(tile[odd] for tile in tiles)])
            length //= 2
            tiles = [materialise(half, (*shape[:axis], length, *shape[axis + 1 :])) for half in halves]
        results = tuple(tile[first] for tile in tiles)
        return results[0] if len(results) == 1 else results

    return function


def scan(op: Op, combine: Combine) -> Function:
    """Inclusive prefix combination along an axis."""
    shape, axis, reverse = op.operand(0).shape, op.integer("axis"), op.flag("reverse")
    before = (slice(None),) * axis
    backwards = (*before, slice(None, None, -1))

    def function(*values: Any) -> Any:
        tiles = [materialise(value, shape) for value in values]
        if reverse:
            tiles = [tile[backwards] for tile in tiles]
        distance = 1
        while distance < shape[axis]:
            earlier, later = (*before, slice(None, -distance)), (*before, slice(distance, None))
            sums = combine([*(tile[earlier] for tile in tiles), *(tile[later] for tile in tiles)])
            tiles = [tile.copy() for tile in tiles]
            for tile, partial in zip(tiles, sums, strict=True):
                tile[later] = partial
            distance *= 2
        if reverse:
            tiles = [tile[backwards] for tile in tiles]
        return tiles[0] if len(tiles) == 1 else tuple(tiles)

    return function
