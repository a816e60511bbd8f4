"""Megalodon's three ops for JAX: one function each, several implementations behind it.

complex_ema, timestep_norm, chunked_attention    the ops
explain                                          which implementation would run, and why not the others
use_implementation, strict, compile_for          steer the choice inside a `with` block
KernelUnavailable                                a named implementation cannot run
"""

from pallas_kernels._dispatch import KernelUnavailable
from pallas_kernels._explain import Explanation, explain
from pallas_kernels._settings import compile_for, strict, use_implementation
from pallas_kernels.chunked_attention.api import chunked_attention
from pallas_kernels.complex_ema.api import complex_ema
from pallas_kernels.timestep_norm.api import timestep_norm

__all__ = [
    "Explanation",
    "KernelUnavailable",
    "chunked_attention",
    "compile_for",
    "complex_ema",
    "explain",
    "strict",
    "timestep_norm",
    "use_implementation",
]
