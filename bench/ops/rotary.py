"""normalized_rotary as a subject of parity and of static figures.

forward             (inputs) -> q, k
forward+backward    (dq, dk, inputs) -> (q, k, all gradients)
"""

from collections.abc import Callable

import jax
import numpy as np

from bench.inspect import Kernel
from bench.inspect.lowering import TritonCall
from bench.ops.walk import Walk
from bench.programs import MODES
from pallas_kernels import normalized_rotary
from pallas_kernels._architecture import Architecture
from pallas_kernels._tiles import Launch
from pallas_kernels.normalized_rotary import tiles as heuristic
from pallas_kernels.normalized_rotary.launch import BACKWARD, FORWARD
from pallas_kernels.normalized_rotary.problem import Problem
from pallas_kernels.normalized_rotary.specs import Spec
from reference import oracle_numpy_rotary

NAME = "normalized_rotary"
KERNELS = (FORWARD, BACKWARD)
_MOVING = ("z", "scale", "shift", "bias")

Arrays = dict[str, jax.ShapeDtypeStruct]


def describe(spec: Spec) -> str:
    """Its sizes and options."""
    sizes = f"B = {spec.batch}, L = {spec.length}, H = {spec.heads}, K = {spec.depth}"
    options = ["interleaved" if spec.interleaved else "half-split"]
    options += ["positions of each row"] * spec.rows + ["bias"] * spec.bias
    options += [f"(scale + {spec.offset:g}) {spec.factor:g}"] * ((spec.offset, spec.factor) != (0.0, 1.0))
    return ", ".join([sizes, np.dtype(spec.dtype).name, *options])


def inputs(spec: Spec, seed: int = 0) -> dict[str, np.ndarray]:
    """Random arrays for a spec, the cotangents dq and dk included."""
    r = np.random.default_rng(seed)
    found = {name: np.asarray(r.normal(size=a.shape), a.dtype) for name, a in spec.arrays().items()}
    start = r.integers(0, 2**30, spec.batch)[:, None] if spec.rows else 0
    found["positions"] = np.asarray(start + np.arange(spec.length), np.int32)
    return found


def values(spec: Spec, implementation: str) -> Callable[[dict], dict[str, jax.Array]]:
    """Function of the arrays of `inputs`: q, k and the gradients by name."""

    def run(arrays: dict) -> dict[str, jax.Array]:
        moving = {name: arrays[name] for name in _MOVING if name in arrays}
        (q, k), pullback = jax.vjp(lambda moving: _rotary(spec, implementation, arrays | moving), moving)
        gradients = pullback((arrays["dq"], arrays["dk"]))[0]
        return {"q": q, "k": k} | {f"d{name}": gradient for name, gradient in gradients.items()}

    return run


def truth(spec: Spec, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same from the float64 oracle."""
    given = {name: arrays[name].astype(np.float64) for name in _MOVING if name in arrays}
    fixed = {"positions": arrays["positions"], **_options(spec)}
    q, k = oracle_numpy_rotary.normalized_rotary(**given, **fixed)
    dq, dk = (arrays[name].astype(np.float64) for name in ("dq", "dk"))
    gradients = oracle_numpy_rotary.normalized_rotary_vjp(**given, **fixed, dq=dq, dk=dk)
    return {"q": q, "k": k} | {f"d{name}": gradients[name] for name in given}


def program(spec: Spec, mode: str, implementation: str) -> tuple[Callable, Arrays]:
    """A program of `spec` and its abstract argument."""
    arrays = spec.arrays()
    if mode == MODES[0]:
        del arrays["dq"], arrays["dk"]
        return lambda arrays: _rotary(spec, implementation, arrays), arrays
    return values(spec, implementation), arrays


def _rotary(spec: Spec, implementation: str, arrays: dict):
    return normalized_rotary(
        **{name: arrays[name] for name in _MOVING if name in arrays},
        positions=arrays["positions"],
        **_options(spec),
        implementation=implementation,
    )


def _options(spec: Spec) -> dict:
    return {"interleaved": spec.interleaved, "scale_offset": spec.offset, "scale_factor": spec.factor}


def baselines(spec: Spec) -> tuple[str, ...]:
    """None: the XLA reference is the only other implementation."""
    return ()


def launches(spec: Spec, gpu: Architecture) -> tuple[Launch, ...]:
    """Every kernel with its tiles, on a GPU."""
    return heuristic.launches(gpu, spec.arrays()["z"], interleaved=spec.interleaved)


def walk(spec: Spec, mode: str, kernel: Kernel) -> Walk:
    """One loop over the tiles of a chunk; loops inside it are not entered."""
    tiles = next(launch.tiles for launch in launches(spec, kernel.target.architecture) if launch.kernel == kernel.name)
    problem = Problem(spec.batch, spec.length, spec.heads, spec.depth, 0.0, 1.0, False, 0.0, 1.0)
    trips = -(-problem.chunks(tiles)[1] // tiles.block_length)
    return Walk(
        tile={"tokens": tiles.block_length, "chunks": kernel.grid[0]},
        elements=tiles.block_length * spec.depth,
        trips=(trips,) if trips > 1 else (),  # the compiler knows where there is one tile
        others=0,  # what sine and cosine do with angles above 1e5
    )


def alike(call: TritonCall) -> list[tuple[list[int], int]]:
    """Every chunk of one head and row: the others do the same."""
    chunks, heads, batch = call.grid
    return [(list(range(chunks)), heads * batch)]


def cached(spec: Spec) -> set[tuple[int, ...]]:
    """Shapes of scale and shift, of bias, of positions and of the angles of their digits."""
    arrays = spec.arrays()
    return {
        arrays["scale"].shape,
        arrays["scale"].shape[1:],
        arrays["positions"].shape,
        (1, spec.length),
        (4, spec.depth // 2),
    }


def least_multiply_adds(spec: Spec, mode: str) -> int:
    """No matrix products."""
    return 0
