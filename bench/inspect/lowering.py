"""Lower a JAX function for an NVIDIA GPU without one, and find the Triton kernels in the result.

No CUDA plugin is needed: Pallas writes each Triton kernel, as MLIR bytecode, into the `backend_config` of a custom call
of the StableHLO module.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import ml_dtypes
import numpy as np
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import stablehlo

from pallas_kernels import compile_for

CUSTOM_CALL = "__gpu$xla.gpu.triton"
COMPILED_CUSTOM_CALL = "triton_kernel_call_ffi"  # jax with a newer jaxlib: holds PTX in the place of Triton IR

ELEMENT_TYPES = {
    "i1": np.bool_,
    "i8": np.int8,
    "i16": np.int16,
    "i32": np.int32,
    "i64": np.int64,
    "ui8": np.uint8,
    "ui16": np.uint16,
    "ui32": np.uint32,
    "ui64": np.uint64,
    "f16": np.float16,
    "f32": np.float32,
    "f64": np.float64,
    "bf16": ml_dtypes.bfloat16,
    "f8E4M3FN": ml_dtypes.float8_e4m3fn,
    "f8E5M2": ml_dtypes.float8_e5m2,
}


@dataclass(frozen=True)
class TritonCall:
    """One Triton kernel of a lowered program.

    Attributes:
        name: name of the kernel function.
        grid: (x, y, z) as launched: Pallas folds longer grids, and the axis that vmap adds, into three.
        operands: shapes and dtypes of the arrays passed in; the kernel's arguments are these, then the results.
        results: shapes and dtypes of the arrays returned.
        aliases: result index -> operand index, for results that share the operand's memory.
        bytecode: MLIR bytecode of the kernel, in the `tt` dialect.
    """

    name: str
    grid: tuple[int, int, int]
    num_warps: int
    num_stages: int
    operands: tuple[jax.ShapeDtypeStruct, ...]
    results: tuple[jax.ShapeDtypeStruct, ...]
    aliases: dict[int, int]
    bytecode: bytes = field(repr=False)


def lower(function: Callable, *avals: Any, target: str = "sm_90") -> jax.stages.Lowered:
    """`function`, traced for the GPU architecture `target` and lowered for the platform cuda.

    `avals` are arrays or `jax.ShapeDtypeStruct`s (or trees of them).
    """
    with compile_for(target):
        return lower_for_cuda(function, *avals)


def lower_for_cuda(function: Callable, *avals: Any) -> jax.stages.Lowered:
    """`function` lowered for the platform cuda under the settings in force."""
    with warnings.catch_warnings():
        # jax >= 0.11 warns at every lowering; that this project builds on Pallas' Triton lowering is a known decision.
        warnings.filterwarnings("ignore", "The Pallas Triton backend is deprecated", DeprecationWarning)
        return jax.jit(function).trace(*avals).lower(lowering_platforms=("cuda",))


def triton_calls(lowered: jax.stages.Lowered) -> list[TritonCall]:
    """The Triton kernels of a lowered program, in program order; one in a loop or a called function counts once.

    Raises:
        ValueError: the program holds kernels that are compiled already, which no jax release this project supports
            emits for the platform cuda.
    """
    module = lowered.compiler_ir("stablehlo")
    assert module is not None
    return [_read(operation) for operation in _custom_calls(module.operation)]


def _custom_calls(operation: Any) -> Iterator[Any]:
    for region in operation.regions:
        for block in region.blocks:
            for view in block.operations:
                inner = view.operation
                if inner.name == "stablehlo.custom_call":
                    target = ir.StringAttr(inner.attributes["call_target_name"]).value
                    if target == COMPILED_CUSTOM_CALL:
                        raise ValueError(f"triton_calls: a {target} holds compiled code, not Triton IR.")
                    if target == CUSTOM_CALL:
                        yield inner
                yield from _custom_calls(inner)


def _read(operation: Any) -> TritonCall:
    config = ir.DictAttr(operation.attributes["mhlo.backend_config"])

    def number(key: str) -> int:
        return ir.IntegerAttr(config[key]).value

    return TritonCall(
        name=ir.StringAttr(config["name"]).value,
        grid=(number("grid_x"), number("grid_y"), number("grid_z")),
        num_warps=number("num_warps"),
        num_stages=number("num_stages"),
        operands=tuple(_spec(value.type) for value in operation.operands),
        results=tuple(_spec(value.type) for value in operation.results),
        aliases=_aliases(operation),
        bytecode=ir.StringAttr(config["ir"]).value_bytes,
    )


def _spec(mlir_type: Any) -> jax.ShapeDtypeStruct:
    tensor = ir.RankedTensorType(mlir_type)
    name = str(tensor.element_type)
    if name not in ELEMENT_TYPES:
        raise ValueError(f"triton_calls: arrays of element type {name} are not supported.")
    return jax.ShapeDtypeStruct(tuple(tensor.shape), np.dtype(ELEMENT_TYPES[name]))


def _aliases(operation: Any) -> dict[int, int]:
    if "output_operand_aliases" not in operation.attributes:
        return {}
    aliases = {}
    several = len(operation.results) > 1
    for attribute in ir.ArrayAttr(operation.attributes["output_operand_aliases"]):
        alias = stablehlo.OutputOperandAlias(attribute)
        [result] = alias.output_tuple_indices if several else [0]
        aliases[result] = alias.operand_index
    return aliases
