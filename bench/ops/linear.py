"""fused_linear as a subject of parity and of static figures.

forward             (inputs) -> y
forward+backward    (dy, inputs) -> (y, all gradients)
"""

from collections.abc import Callable

import jax
import numpy as np

from bench.inspect import Kernel
from bench.inspect.lowering import TritonCall
from bench.ops.walk import Walk
from bench.programs import MODES
from pallas_kernels import fused_linear
from pallas_kernels._architecture import Architecture
from pallas_kernels.fused_linear import tiles as heuristic
from pallas_kernels.fused_linear.launch import DW, DX, FORWARD
from pallas_kernels.fused_linear.specs import Spec
from reference import oracle_numpy_linear

NAME = "fused_linear"
KERNELS = (FORWARD, DX, DW)
MOVING = ("x", "weight", "bias", "x_bias", "residual")

Arrays = dict[str, jax.ShapeDtypeStruct]


def describe(spec: Spec) -> str:
    """Its sizes and options."""
    sizes = f"B = {spec.batch}, L = {spec.length}, D = {spec.features}, O = {spec.outputs}"
    options = [spec.activation or "no activation", np.dtype(spec.weight_dtype).name + " weight"]
    options += [name for name in ("bias", "x_bias", "residual") if getattr(spec, name)]
    return ", ".join([sizes, np.dtype(spec.dtype).name, *options])


def inputs(spec: Spec, seed: int = 0) -> dict[str, np.ndarray]:
    """Random arrays for a spec, the cotangent dy included; the product is of the size of what is added to it."""
    r = np.random.default_rng(seed)
    scale = {"weight": spec.features**-0.5}
    return {
        name: np.asarray(r.normal(0.0, scale.get(name, 1.0), a.shape), a.dtype) for name, a in spec.arrays().items()
    }


def values(spec: Spec, implementation: str) -> Callable[[dict], dict[str, jax.Array]]:
    """Function of the arrays of `inputs`: y and the gradients by name."""

    def run(arrays: dict) -> dict[str, jax.Array]:
        moving = {name: arrays[name] for name in MOVING if name in arrays}
        y, pullback = jax.vjp(lambda moving: _linear(spec, implementation, moving), moving)
        return {"y": y} | {f"d{name}": gradient for name, gradient in pullback(arrays["dy"])[0].items()}

    return run


def truth(spec: Spec, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same from the float64 oracle."""
    given = {name: arrays[name].astype(np.float64) for name in MOVING if name in arrays}
    y = oracle_numpy_linear.fused_linear(**given, activation=spec.activation)
    dy = arrays["dy"].astype(np.float64)
    gradients = oracle_numpy_linear.fused_linear_vjp(**given, activation=spec.activation, dy=dy)
    return {"y": y} | {f"d{name}": gradients[name] for name in given}


def program(spec: Spec, mode: str, implementation: str) -> tuple[Callable, Arrays]:
    """A program of `spec` and its abstract argument."""
    arrays = spec.arrays()
    if mode == MODES[0]:
        del arrays["dy"]
        return lambda arrays: _linear(spec, implementation, arrays), arrays
    return values(spec, implementation), arrays


def _linear(spec: Spec, implementation: str, arrays: dict) -> jax.Array:
    return fused_linear(**arrays, activation=spec.activation, implementation=implementation)


def baselines(spec: Spec) -> tuple[str, ...]:
    """None: the XLA reference is the only other implementation."""
    return ()


def walk(spec: Spec, mode: str, kernel: Kernel) -> Walk:
    """Matrix products are what takes time: only their tiles."""
    given = {name: array for name, array in spec.arrays().items() if name in MOVING}
    plan = heuristic.launches(Architecture.of(kernel.target.name), **given, activation=spec.activation)
    tiles = next(launch.tiles for launch in plan if launch.kernel == kernel.name)
    shown = {"rows": tiles.block_m, "columns": tiles.block_n, "terms": tiles.block_k, "stages": tiles.num_stages}
    return Walk(shown | {"splits": tiles.num_splits}, elements=0, trips=None, others=0)


def alike(call: TritonCall) -> list[tuple[list[int], int]]:
    """The programs of the first block of columns, which alone store the gradient of the bias, and the others."""
    columns, rows, splits = call.grid
    others = [([columns - 1], (columns - 1) * rows * splits)] if columns > 1 else []
    return [([0], rows * splits), *others]


def cached(spec: Spec) -> set[tuple[int, ...]]:
    """Shapes of the biases."""
    arrays = spec.arrays()
    return {arrays[name].shape for name in ("bias", "x_bias") if name in arrays}


def least_multiply_adds(spec: Spec, mode: str) -> int:
    """One product forward, two backward."""
    return spec.batch * spec.length * spec.features * spec.outputs * (1 if mode == MODES[0] else 3)
