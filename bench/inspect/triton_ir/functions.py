"""Functions by the names of the CUDA side: libdevice symbols and PTX instructions of inline assembly."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.inspect.triton_ir import numerics
from bench.inspect.triton_ir.mlir import Op

Function = Callable[..., Any]


def _rsqrt(x: Any) -> Any:
    return np.reciprocal(np.sqrt(x))


def power(x: Any, y: Any) -> Any:
    """Power with an integer exponent, in the dtype of x."""
    return np.power(x, y.astype(x.dtype))


MATH: dict[str, Function] = {
    "sqrt": np.sqrt,
    "rsqrt": _rsqrt,
    "cbrt": np.cbrt,
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "log": np.log,
    "log2": np.log2,
    "log1p": np.log1p,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "atan2": np.arctan2,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "tanh": np.tanh,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "floor": np.floor,
    "ceil": np.ceil,
    "copysign": np.copysign,
}
LIBDEVICE: dict[str, Function] = {
    **{f"__nv_{name}{suffix}": function for name, function in MATH.items() for suffix in ("f", "")},
    **{
        f"__nv_{name}{suffix}": function
        for name, function in (
            ("fabs", np.abs),
            ("pow", np.power),
            ("powi", power),
            ("nextafter", np.nextafter),
            ("fmod", np.fmod),
        )
        for suffix in ("f", "")
    },
    "__nv_abs": np.abs,
    "__nv_llabs": np.abs,
    "__nv_popc": numerics.count_ones,
    "__nv_popcll": numerics.count_ones,
    "__nv_clz": numerics.count_leading_zeros,
    "__nv_clzll": numerics.count_leading_zeros,
    "__nv_fmaf": numerics.fma,
}
# PTX instructions that inline assembly may consist of.
PTX: dict[str, Function] = {
    "fma.rn.f32": numerics.fma,
    "add.rn.f32": np.add,
    "add.f32": np.add,
    "sub.rn.f32": np.subtract,
    "sub.f32": np.subtract,
    "mul.rn.f32": np.multiply,
    "mul.f32": np.multiply,
    "tanh.approx.f32": np.tanh,
    "ex2.approx.f32": np.exp2,
    "ex2.approx.ftz.f32": np.exp2,
    "lg2.approx.f32": np.log2,
    "lg2.approx.ftz.f32": np.log2,
    "rcp.approx.f32": np.reciprocal,
    "rcp.approx.ftz.f32": np.reciprocal,
    "rsqrt.approx.f32": _rsqrt,
    "rsqrt.approx.ftz.f32": _rsqrt,
    "sqrt.approx.f32": np.sqrt,
}


def libdevice(op: Op) -> Function:
    """The function of a `tt.extern_elementwise`."""
    symbol = op.text("symbol")
    if symbol not in LIBDEVICE:
        raise op.unsupported(f"libdevice function {symbol}")
    return LIBDEVICE[symbol]


def inline_asm(op: Op) -> Function:
    """One PTX instruction `name $0, $i, $j...;` whose operands are the registers in any order."""
    text = " ".join(op.text("asm_string").split())
    match = re.fullmatch(r"([\w.]+) \$0((?:, \$\d+)+) ?;?", text)
    if match is None or match[1] not in PTX or op.integer("packed_element") != 1 or len(op.results) != 1:
        raise op.unsupported(f'"{text}" with {op.integer("packed_element")} packed elements')
    function = PTX[match[1]]
    order = [int(number) - 1 for number in re.findall(r"\$(\d+)", match[2])]
    if any(op.operand(i).dtype != np.float32 for i in range(len(op.operands))) or op.result.dtype != np.float32:
        raise op.unsupported(f'"{text}" on operands that are not float32')
    if order == list(range(len(op.operands))):
        return function
    return lambda *values: function(*(values[i] for i in order))
