"""Operations that move elements: splat, broadcast, reshape, transpose, join, split, select.

Tiles are broadcast lazily. A value of a tile type with shape s is held as a scalar (every element the same) or as an
array of the same rank whose dimensions are those of s or 1; `materialise` makes the full tile where one is needed.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from bench.inspect.triton_ir.memory import Pointer
from bench.inspect.triton_ir.mlir import Op

Function = Callable[..., Any]


def materialise(value: Any, shape: tuple[int, ...]) -> Any:
    """The tile in its full shape (a read-only view where it was broadcast)."""
    return value if value.shape == shape else np.broadcast_to(value, shape)


def on_offsets(function: Function) -> Function:
    """Let a function of numbers act on pointers too."""

    def both(value: Any) -> Any:
        if isinstance(value, Pointer):
            return Pointer(value.buffer, function(value.offsets))
        return function(value)

    return both


def splat(op: Op) -> Function:
    """Also `tt.broadcast`: both are lazy."""
    return lambda value: value


def make_range(op: Op) -> Function:
    """start, start + 1, ..., end - 1."""
    values = np.arange(op.integer("start"), op.integer("end"), dtype=np.int32)
    return lambda: values


def constant(op: Op) -> Function:
    """A constant; a scalar where all elements are equal."""
    value = op.constant()
    return lambda: value


def expand_dims(op: Op) -> Function:
    """A new axis of size 1."""
    key = (*(slice(None),) * op.integer("axis"), None, ...)
    return on_offsets(lambda value: value[key] if value.ndim else value)


def reshape(op: Op) -> Function:
    """The same elements, in row-major order, in another shape."""
    if op.flag("allow_reorder"):
        raise op.unsupported("allow_reorder")
    before, after = op.operand(0).shape, op.result.shape
    return on_offsets(lambda value: materialise(value, before).reshape(after) if value.ndim else value)


def transpose(op: Op) -> Function:
    """A permutation of the axes."""
    order = op.integers("order")
    return on_offsets(lambda value: value.transpose(order) if value.ndim else value)


def join(op: Op) -> Function:
    """Two tiles side by side along a new last axis."""
    shape, dtype = op.result.shape, op.result.dtype

    def function(left: Any, right: Any) -> Any:
        both = np.empty(shape, dtype)
        both[..., 0] = left
        both[..., 1] = right
        return both

    return function


def split(op: Op) -> Function:
    """The two halves of a last axis of size 2."""
    shape = op.operand(0).shape

    def function(value: Any) -> Any:
        if not value.ndim:
            return value, value
        both = materialise(value, shape)
        return both[..., 0], both[..., 1]

    return function


def select(op: Op) -> Function:
    """Elementwise choice."""

    def function(condition: Any, yes: Any, no: Any) -> Any:
        if not condition.ndim:
            return yes if condition else no
        if isinstance(yes, Pointer):
            if yes.buffer is not no.buffer:
                raise op.unsupported("pointers into two buffers")
            return Pointer(yes.buffer, np.where(condition, yes.offsets, no.offsets))
        return np.where(condition, yes, no)

    return function


def bitcast(op: Op) -> Function:
    """Same-width reinterpretation; a pointer keeps its buffer, and loads and stores reinterpret."""
    dtype = op.result.dtype
    if dtype.itemsize != op.operand(0).dtype.itemsize:
        raise op.unsupported(f"{op.operand(0).dtype} to {dtype}")
    if op.result.pointer:
        return lambda value: value
    return lambda value: np.asarray(value).view(dtype)[()]


def add_pointer(op: Op) -> Function:
    """Pointers moved by a number of elements, in 64 bits."""
    return lambda pointer, offsets: Pointer(pointer.buffer, np.add(pointer.offsets, offsets, dtype=np.int64))


SHAPES: dict[str, Callable[[Op], Function]] = {
    "arith.constant": constant,
    "tt.make_range": make_range,
    "tt.splat": splat,
    "tt.unsplat": splat,
    "tt.broadcast": splat,
    "tt.expand_dims": expand_dims,
    "tt.reshape": reshape,
    "tt.trans": transpose,
    "tt.join": join,
    "tt.split": split,
    "tt.bitcast": bitcast,
    "tt.addptr": add_pointer,
    "arith.select": select,
}
