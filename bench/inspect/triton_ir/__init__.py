"""A NumPy interpreter of the Triton IR that Pallas emits: lowered kernels executed, and checked, on the CPU.

execute(function, *arrays)      a whole JAX function, its kernels run from their lowered IR
run_kernel(call, inputs)        one lowered kernel on arrays
check_addresses(call)           some grid cells of one kernel, without memory, for arrays of any size
"""

from bench.inspect.triton_ir.execute import execute
from bench.inspect.triton_ir.faults import Fault, FaultKind, KernelFault
from bench.inspect.triton_ir.interpreter import check_addresses, run_kernel
from bench.inspect.triton_ir.memory import BufferUse
from bench.inspect.triton_ir.mlir import UnsupportedOperation
from bench.inspect.triton_ir.report import Report

__all__ = [
    "BufferUse",
    "Fault",
    "FaultKind",
    "KernelFault",
    "Report",
    "UnsupportedOperation",
    "check_addresses",
    "execute",
    "run_kernel",
]
