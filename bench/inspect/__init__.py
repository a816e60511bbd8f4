"""Compiled programs without a GPU: kernels, registers, machine code, launches, bytes moved.

    program = compile_program(function, *avals, target="sm_90")
    program.bytes_moved, program.launches, program.kernels["row_norm"].registers

Needs the extra `inspect` (Linux); `missing()` says in one line why it cannot run. Nothing here runs on a GPU: figures
are static, and times from `model` are those of a model.
"""

from bench.inspect.buffers import Buffer
from bench.inspect.compile import compile_program
from bench.inspect.cost import Model, memory_us, model, tensor_us
from bench.inspect.hlo import Launch, Traffic, traffic
from bench.inspect.isolated import CompilerFailed, compile_in_subprocess
from bench.inspect.loops import Loop
from bench.inspect.occupancy import Occupancy, occupancy
from bench.inspect.program import Kernel, Program
from bench.inspect.targets import TARGETS, Target
from bench.inspect.tools import ToolsMissing, missing, unpinned, versions

__all__ = [
    "TARGETS",
    "Buffer",
    "CompilerFailed",
    "Kernel",
    "Launch",
    "Loop",
    "Model",
    "Occupancy",
    "Program",
    "Target",
    "ToolsMissing",
    "Traffic",
    "compile_in_subprocess",
    "compile_program",
    "memory_us",
    "missing",
    "model",
    "occupancy",
    "tensor_us",
    "traffic",
    "unpinned",
    "versions",
]
