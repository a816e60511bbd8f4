"""feature_norm as a subject of parity and of static figures.

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
from pallas_kernels import feature_norm
from pallas_kernels._architecture import Architecture
from pallas_kernels._tiles import Launch
from pallas_kernels.feature_norm import tiles as heuristic
from pallas_kernels.feature_norm.launch import BACKWARD, FORWARD
from pallas_kernels.feature_norm.problem import Problem
from pallas_kernels.feature_norm.specs import Spec
from reference import oracle_numpy_features

NAME = "feature_norm"
KERNELS = (FORWARD, BACKWARD)
MOVING = ("x", "weight", "bias")

Arrays = dict[str, jax.ShapeDtypeStruct]


def describe(spec: Spec) -> str:
    """Its sizes and options."""
    sizes = f"B = {spec.batch}, L = {spec.length}, D = {spec.features}"
    options = ["layer norm" if spec.centred else "RMS norm"] + ["gain minus one"] * spec.minus_one
    options += [f"no {name}" for name in ("weight", "bias") if not getattr(spec, name)]
    return ", ".join([sizes, np.dtype(spec.dtype).name, *options])


def inputs(spec: Spec, seed: int = 0) -> dict[str, np.ndarray]:
    """Random arrays for a spec, the cotangent dy included; tokens have means of the size of their deviations."""
    r = np.random.default_rng(seed)
    found = {name: r.normal(size=array.shape) for name, array in spec.arrays().items()}
    found["x"] += r.normal(size=(spec.batch, spec.length, 1))
    return {name: np.asarray(found[name], array.dtype) for name, array in spec.arrays().items()}


def values(spec: Spec, implementation: str) -> Callable[[dict], dict[str, jax.Array]]:
    """Function of the arrays of `inputs`: y and the gradients by name."""

    def run(arrays: dict) -> dict[str, jax.Array]:
        moving = {name: arrays[name] for name in MOVING if name in arrays}
        y, pullback = jax.vjp(lambda moving: _norm(spec, implementation, moving), moving)
        return {"y": y} | {f"d{name}": gradient for name, gradient in pullback(arrays["dy"])[0].items()}

    return run


def truth(spec: Spec, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same from the float64 oracle."""
    given = {name: arrays[name].astype(np.float64) for name in MOVING if name in arrays}
    fixed = {"centred": spec.centred, "minus_one": spec.minus_one}
    y = oracle_numpy_features.feature_norm(**given, **fixed)
    gradients = oracle_numpy_features.feature_norm_vjp(**given, **fixed, dy=arrays["dy"].astype(np.float64))
    return {"y": y} | {f"d{name}": gradients[name] for name in given}


def program(spec: Spec, mode: str, implementation: str) -> tuple[Callable, Arrays]:
    """A program of `spec` and its abstract argument."""
    arrays = spec.arrays()
    if mode == MODES[0]:
        del arrays["dy"]
        return lambda arrays: _norm(spec, implementation, arrays), arrays
    return values(spec, implementation), arrays


def _norm(spec: Spec, implementation: str, arrays: dict) -> jax.Array:
    return feature_norm(**arrays, centred=spec.centred, minus_one=spec.minus_one, implementation=implementation)


def baselines(spec: Spec) -> tuple[str, ...]:
    """None: the XLA reference is the only other implementation."""
    return ()


def launches(spec: Spec, gpu: Architecture) -> tuple[Launch, ...]:
    """Every kernel with its tiles, on a GPU."""
    return heuristic.launches(gpu, spec.arrays()["x"], centred=spec.centred)


def walk(spec: Spec, mode: str, kernel: Kernel) -> Walk:
    """One loop over the tiles of a chunk."""
    tiles = next(launch.tiles for launch in launches(spec, kernel.target.architecture) if launch.kernel == kernel.name)
    problem = Problem(spec.batch * spec.length, spec.features, spec.centred, spec.minus_one, eps=0.0)
    trips = -(-problem.chunks(tiles)[1] // tiles.block_length)
    return Walk(
        tile={"tokens": tiles.block_length, "chunks": kernel.grid[0]},
        elements=tiles.block_length * spec.features,
        trips=(trips,) if trips > 1 else (),  # the compiler knows where there is one tile
        others=0,
    )


def alike(call: TritonCall) -> list[tuple[list[int], int]]:
    """Every chunk: the last may have fewer tokens."""
    return [(list(range(call.grid[0])), 1)]


def cached(spec: Spec) -> set[tuple[int, ...]]:
    """Shape of the parameters."""
    return {(spec.features,)}


def least_multiply_adds(spec: Spec, mode: str) -> int:
    """No matrix products."""
    return 0
