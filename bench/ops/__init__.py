"""What parity and the static figures need to know of an op, one module for each, found by the type of a spec.

A module has

    inputs(spec, seed)                      random arrays, the cotangents included
    values(spec, implementation)            function of them: every output and gradient by name
    truth(spec, arrays)                     the same from the float64 oracle
    program(spec, mode, implementation)     the program that is compiled and inspected, and its abstract argument
    launches(spec, target)                  its kernels with their tiles
    elements(spec, tiles)                   elements of x in a tile
    chunk(spec, tiles)                      tokens of a chunk
    alike(grid)                             programs of a grid that do all there is to do, and how often
    KERNELS                                 their names, forward first
"""

from types import ModuleType

from bench.ops import ema, norm
from pallas_kernels.complex_ema.specs import Spec as EmaSpec
from pallas_kernels.timestep_norm.specs import Spec as NormSpec

Spec = NormSpec | EmaSpec


def of(spec: Spec) -> ModuleType:
    """The module of the op that a spec is of."""
    return {NormSpec: norm, EmaSpec: ema}[type(spec)]
