"""Tables of the elementwise operations: name -> function of NumPy values.

float16 and bfloat16 arithmetic is done in float32 and rounded. Where the GPU approximates (division, `rsqrt`, libdevice
functions) NumPy's result differs from it by a few units in the last place.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from bench.inspect.triton_ir import numerics
from bench.inspect.triton_ir.functions import MATH, Function, inline_asm, libdevice, power
from bench.inspect.triton_ir.mlir import Op
from bench.inspect.triton_ir.numerics import unsigned

FLOAT: dict[str, Function] = {
    **{f"math.{name}": function for name, function in MATH.items()},
    "math.absf": np.abs,
    "math.powf": np.power,
    "math.fpowi": power,
    "arith.addf": np.add,
    "arith.subf": np.subtract,
    "arith.mulf": np.multiply,
    "arith.divf": np.divide,
    "arith.remf": np.fmod,
    "arith.negf": np.negative,
    "arith.maximumf": np.maximum,
    "arith.minimumf": np.minimum,
    "arith.maxnumf": np.fmax,
    "arith.minnumf": np.fmin,
}
INTEGER: dict[str, Function] = {
    "arith.addi": np.add,
    "arith.subi": np.subtract,
    "arith.muli": np.multiply,
    "arith.andi": np.bitwise_and,
    "arith.ori": np.bitwise_or,
    "arith.xori": np.bitwise_xor,
    "arith.divsi": numerics.divide,
    "arith.divui": lambda x, y: np.floor_divide(unsigned(x), unsigned(y)).view(x.dtype),
    "arith.remsi": np.fmod,
    "arith.remui": lambda x, y: np.fmod(unsigned(x), unsigned(y)).view(x.dtype),
    "arith.maxsi": np.maximum,
    "arith.minsi": np.minimum,
    "arith.maxui": lambda x, y: np.maximum(unsigned(x), unsigned(y)).view(x.dtype),
    "arith.minui": lambda x, y: np.minimum(unsigned(x), unsigned(y)).view(x.dtype),
    "arith.shli": np.left_shift,
    "arith.shrsi": np.right_shift,
    "arith.shrui": lambda x, y: np.right_shift(unsigned(x), unsigned(y)).view(x.dtype),
    "math.absi": np.abs,
    "math.ctpop": numerics.count_ones,
    "math.ctlz": numerics.count_leading_zeros,
}
_BITS = {  # arithmetic on single bits
    "arith.addi": np.bitwise_xor,
    "arith.subi": np.bitwise_xor,
    "arith.muli": np.bitwise_and,
    "arith.andi": np.bitwise_and,
    "arith.ori": np.bitwise_or,
    "arith.xori": np.bitwise_xor,
    "arith.maxui": np.bitwise_or,
    "arith.minui": np.bitwise_and,
}
CASTS: dict[str, Callable[[Any, np.dtype], Any]] = {
    "arith.extf": lambda x, dtype: x.astype(dtype),
    "arith.truncf": lambda x, dtype: x.astype(dtype),
    "tt.fp_to_fp": lambda x, dtype: x.astype(dtype),
    "arith.sitofp": numerics.to_float,
    "arith.uitofp": lambda x, dtype: unsigned(x).astype(dtype),
    "arith.fptosi": numerics.to_integer,
    "arith.fptoui": lambda x, dtype: numerics.to_integer(x, numerics.UNSIGNED[dtype]).view(dtype),
    "arith.extsi": numerics.sign_extend,
    "arith.extui": lambda x, dtype: unsigned(x).astype(dtype),
    "arith.trunci": numerics.truncate,
    "arith.index_cast": numerics.sign_extend,
    "arith.bitcast": lambda x, dtype: x.view(dtype),
}
_COMPARE_INTEGERS: tuple[Function, ...] = (
    np.equal,
    np.not_equal,
    np.less,
    np.less_equal,
    np.greater,
    np.greater_equal,
    lambda x, y: np.less(unsigned(x), unsigned(y)),
    lambda x, y: np.less_equal(unsigned(x), unsigned(y)),
    lambda x, y: np.greater(unsigned(x), unsigned(y)),
    lambda x, y: np.greater_equal(unsigned(x), unsigned(y)),
)
# In the order of MLIR's CmpFPredicate: false, o.., ord, u.., uno, true. A NaN makes o.. false and u.. true.
_COMPARE_FLOATS: tuple[Function, ...] = (
    lambda x, y: np.zeros(np.broadcast_shapes(np.shape(x), np.shape(y)), np.bool_)[()],
    np.equal,
    np.greater,
    np.greater_equal,
    np.less,
    np.less_equal,
    lambda x, y: np.less(x, y) | np.greater(x, y),
    lambda x, y: np.equal(x, x) & np.equal(y, y),
    lambda x, y: ~(np.less(x, y) | np.greater(x, y)),
    lambda x, y: ~np.less_equal(x, y),
    lambda x, y: ~np.less(x, y),
    lambda x, y: ~np.greater_equal(x, y),
    lambda x, y: ~np.greater(x, y),
    np.not_equal,
    lambda x, y: np.not_equal(x, x) | np.not_equal(y, y),
    lambda x, y: np.ones(np.broadcast_shapes(np.shape(x), np.shape(y)), np.bool_)[()],
)


def elementwise(op: Op) -> Function | None:
    """The function of an elementwise operation, None if the operation is not in these tables."""
    if op.name in FLOAT:
        return _in_float32(FLOAT[op.name], op)
    if op.name in INTEGER:
        return _BITS.get(op.name, INTEGER[op.name]) if op.result.dtype == np.bool_ else INTEGER[op.name]
    if op.name in CASTS:
        cast, dtype = CASTS[op.name], op.result.dtype
        return lambda x: cast(x, dtype)
    if op.name == "arith.cmpi":
        return _COMPARE_INTEGERS[op.integer("predicate")]
    if op.name == "arith.cmpf":
        return _COMPARE_FLOATS[op.integer("predicate")]
    if op.name == "tt.extern_elementwise":
        return libdevice(op)
    if op.name == "tt.elementwise_inline_asm":
        return inline_asm(op)
    return None


def _in_float32(function: Function, op: Op) -> Function:
    dtype = op.result.dtype
    if dtype.itemsize >= 4:
        return function

    def rounded(*values: Any) -> Any:
        return function(*(value.astype(np.float32) for value in values)).astype(dtype)

    return rounded
