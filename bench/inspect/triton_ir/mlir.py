"""Triton IR as plain Python values: the parsed module, the types of its values, the attributes of its operations."""

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.extend.mlir import ir
from jax.interpreters.mlir import make_ir_context
from jaxlib.triton import dialect as triton_dialect

from bench.inspect.lowering import ELEMENT_TYPES

# MLIR's bindings look for a dialect's Python module by this name whenever they hand out an operation, and look again
# each time they do not find it, which takes longer than all else here. jaxlib keeps the tt dialect elsewhere.
sys.modules.setdefault("jaxlib.mlir.dialects.tt", triton_dialect)

_DTYPES = {**ELEMENT_TYPES, "index": np.int64}


class UnsupportedOperation(NotImplementedError):
    """The interpreter does not know this operation, or this form of it."""


@dataclass(frozen=True)
class Tile:
    """Type of a value: a tile (or a scalar, shape ()) of numbers, or of pointers to them."""

    shape: tuple[int, ...]
    dtype: np.dtype
    pointer: bool


def parse(bytecode: bytes) -> Any:
    """The module of one kernel; it keeps its context alive."""
    context = make_ir_context()
    triton_dialect.register_dialect(context)
    with context, ir.Location.unknown(context):
        return ir.Module.parse(bytecode, context)


def kernel_block(module: Any) -> Any:
    """The body of the module's only function."""
    functions = [view.operation for view in module.body.operations if view.operation.name == "tt.func"]
    if len(functions) != 1:
        raise UnsupportedOperation(f"a kernel module with {len(functions)} functions; expected one.")
    return functions[0].regions[0].blocks[0]


def tile_of(value: Any) -> Tile:
    """The type of an SSA value."""
    kind = value.type
    shape = tuple(kind.shape) if isinstance(kind, ir.RankedTensorType) else ()
    element = str(kind.element_type) if isinstance(kind, ir.RankedTensorType) else str(kind)
    pointer = element.startswith("!tt.ptr<")
    name = element.removeprefix("!tt.ptr<").rstrip(">").split(",")[0]
    if name not in _DTYPES:
        raise UnsupportedOperation(f"values of type {kind}.")
    return Tile(shape, np.dtype(_DTYPES[name]), pointer)


class Op:
    """One operation: its name, types and attributes."""

    def __init__(self, operation: Any):
        self.operation = operation
        self.name: str = operation.name
        self.operands = list(operation.operands)
        self.results = list(operation.results)

    @property
    def result(self) -> Tile:
        """Type of the only result."""
        [value] = self.results
        return tile_of(value)

    def operand(self, index: int) -> Tile:
        """Type of an operand."""
        return tile_of(self.operands[index])

    def has(self, attribute: str) -> bool:
        """Is the attribute set?"""
        return attribute in self.operation.attributes

    def integer(self, attribute: str, default: int | None = None) -> int:
        """An integer attribute."""
        if default is not None and not self.has(attribute):
            return default
        return ir.IntegerAttr(self.operation.attributes[attribute]).value

    def flag(self, attribute: str) -> bool:
        """A boolean attribute; False where it is not set. A unit attribute is true."""
        if not self.has(attribute):
            return False
        value = self.operation.attributes[attribute]
        return ir.BoolAttr(value).value if isinstance(value, ir.BoolAttr) else True

    def text(self, attribute: str) -> str:
        """A string attribute."""
        return ir.StringAttr(self.operation.attributes[attribute]).value

    def integers(self, attribute: str) -> tuple[int, ...]:
        """A list of int32."""
        return tuple(ir.DenseI32ArrayAttr(self.operation.attributes[attribute]))

    def constant(self) -> Any:
        """The value of an `arith.constant`: a scalar for a splat."""
        tile, attribute = self.result, self.operation.attributes["value"]
        if isinstance(attribute, ir.DenseElementsAttr):
            if not attribute.is_splat:
                return np.array(attribute).astype(tile.dtype).reshape(tile.shape)
            attribute = attribute.get_splat_value()
        if isinstance(attribute, ir.BoolAttr):
            return np.bool_(attribute.value)
        number = (
            ir.FloatAttr(attribute).value if isinstance(attribute, ir.FloatAttr) else ir.IntegerAttr(attribute).value
        )
        return np.asarray(number).astype(tile.dtype)[()]

    def unsupported(self, what: str = "") -> UnsupportedOperation:
        """The error for this operation."""
        return UnsupportedOperation(
            f"the Triton IR interpreter does not know {self.name}{': ' + what if what else ''}."
        )
