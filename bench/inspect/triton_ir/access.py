"""`tt.load` and `tt.store`: the active lanes go to the buffer, which checks and counts them."""

from collections.abc import Callable
from typing import Any

import numpy as np

from bench.inspect.triton_ir.faults import Site
from bench.inspect.triton_ir.memory import Pointer, poison
from bench.inspect.triton_ir.mlir import Op
from bench.inspect.triton_ir.shapes import materialise

Function = Callable[..., Any]


def load(op: Op) -> Function:
    """Lanes that the mask leaves out hold `other`; without one they are undefined, here poison."""
    shape, dtype, site = op.result.shape, op.result.dtype, Site(op.operation)
    undefined = poison(dtype)

    def everything(pointer: Pointer) -> Any:
        values = pointer.buffer.load(materialise(pointer.offsets, shape), site)
        return values if values.dtype == dtype else _as(values, dtype, op)

    def masked(pointer: Pointer, mask: Any, other: Any = undefined) -> Any:
        if not mask.ndim:
            return everything(pointer) if mask else other
        active = materialise(mask, shape)
        if active.all():
            return everything(pointer)
        tile = np.empty(shape, dtype)
        tile[...] = other
        values = pointer.buffer.load(materialise(pointer.offsets, shape)[active], site)
        tile[active] = values if values.dtype == dtype else _as(values, dtype, op)
        return tile

    return everything if len(op.operands) == 1 else masked


def store(op: Op) -> Function:
    """Lanes that the mask leaves out are not written."""
    shape, site = op.operand(0).shape, Site(op.operation)

    def function(pointer: Pointer, values: Any, mask: Any = np.True_) -> None:
        buffer = pointer.buffer
        if mask.ndim == 0 and not mask:
            return
        offsets, values = materialise(pointer.offsets, shape), materialise(values, shape)
        if mask.ndim:
            active = materialise(mask, shape)
            offsets, values = offsets[active], values[active]
        buffer.store(offsets, values if values.dtype == buffer.dtype else _as(values, buffer.dtype, op), site)

    return function


def _as(values: Any, dtype: np.dtype, op: Op) -> Any:
    """The same bits in another dtype: Pallas sees bool as int8 in memory, and unsigned integers as signless."""
    if values.dtype.itemsize != dtype.itemsize:
        raise op.unsupported(f"{values.dtype} seen as {dtype}")
    return np.ascontiguousarray(values).view(dtype).reshape(values.shape)[()]
