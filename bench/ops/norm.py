"""timestep_norm as a subject of parity and of static figures.

forward             (inputs) -> y; for a spec with a state, (y, new state)
forward+backward    (dy, inputs) -> (y, all gradients)
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from bench.formulations.norm import cumulative_sums
from bench.inspect import Kernel
from bench.inspect.lowering import TritonCall
from bench.ops.documents import documents
from bench.ops.walk import Walk
from bench.programs import MODES
from pallas_kernels import timestep_norm
from pallas_kernels._architecture import Architecture
from pallas_kernels._tiles import Launch
from pallas_kernels.timestep_norm import tiles as heuristic
from pallas_kernels.timestep_norm.launch import BACKWARD, FORWARD
from pallas_kernels.timestep_norm.problem import Problem
from pallas_kernels.timestep_norm.specs import Spec
from reference import oracle_numpy

NAME = "timestep_norm"
KERNELS = (FORWARD, BACKWARD)
SUMS = "cumulative sums"
_MOVING = ("x", "weight", "bias", "mean", "var")

Arrays = dict[str, jax.ShapeDtypeStruct]


def describe(spec: Spec) -> str:
    """Its sizes and options."""
    sizes = f"B = {spec.batch}, L = {spec.length}, D = {spec.features}, G = {spec.groups}"
    options = [option for option in ("mask", "segments", "state") if getattr(spec, option)]
    return ", ".join([sizes, np.dtype(spec.dtype).name, spec.statistics, *options])


def inputs(spec: Spec, seed: int = 0) -> dict[str, np.ndarray]:
    """Random arrays for a spec, dy and the state's cotangents dmean, dvar included; x and dy already in its dtype."""
    r = np.random.default_rng(seed)
    B, L, G = spec.batch, spec.length, spec.groups
    found: dict[str, np.ndarray] = {}
    for name, abstract in spec.arrays().items():
        found[name] = np.asarray(r.normal(size=abstract.shape), abstract.dtype)
    x = r.normal(size=(B, L, spec.features))
    if spec.data == "offset":
        x = 1000.0 + 0.1 * x
    elif spec.data == "constant":
        x = np.full_like(x, 3.0)
    elif spec.data == "drift":
        x = x + np.linspace(0.0, 50.0, L)[None, :, None]
    elif spec.data == "outlier":
        x[:, 2 * L // 3] *= 1e5
    found["x"] = x.astype(spec.dtype)
    if spec.mask:
        found["mask"] = r.random((B, L)) > 0.3
        found["mask"][-1] = B == 1  # a row without a token: the state that came in goes out
    if spec.segments:
        found["segment_ids"] = documents(r, B, L)
    if spec.state:
        found["count"] = r.integers(1, 9, B).astype(np.int32)
        found["count"][0] = 0
        found["var"] = r.uniform(0.2, 2.0, (B, G)).astype(np.float32)
    found["dmean"], found["dvar"] = (r.normal(size=(B, G)).astype(np.float32) for _ in range(2))
    return found


def values(spec: Spec, implementation: str) -> Callable[[dict], dict[str, jax.Array]]:
    """Function of the arrays of `inputs`: every output and gradient of the op by name."""

    def run(arrays: dict) -> dict[str, jax.Array]:
        moving = {key: arrays[key] for key in _MOVING if key in arrays}

        def op(moving: dict):
            y, (count, mean, var) = _norm(spec, implementation, arrays | moving, return_state=True)
            return (y, mean, var), count

        (y, mean, var), pullback, count = jax.vjp(op, moving, has_aux=True)
        gradients = pullback((arrays["dy"], arrays["dmean"], arrays["dvar"]))[0]
        values = {"y": y, "state mean": mean, "state var": var, "state count": count}
        return values | {f"d{name}": gradient for name, gradient in gradients.items()}

    return run


def truth(spec: Spec, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same from the float64 oracle."""
    keys = ("x", "weight", "bias")
    given = {key: np.asarray(arrays[key], np.float64) for key in keys if key in arrays}
    fixed = {key: arrays[key] for key in ("mask", "segment_ids") if key in arrays}
    state = tuple(arrays[key] for key in ("count", "mean", "var")) if spec.state else None
    shared = {"num_groups": spec.groups, "statistics": spec.statistics, "state": state, **fixed}
    y, (count, mean, var) = oracle_numpy.timestep_norm(**given, **shared)
    gradients = oracle_numpy.timestep_norm_vjp(
        **given, dy=np.asarray(arrays["dy"], np.float64), dmean=arrays["dmean"], dvar=arrays["dvar"], **shared
    )
    values = {"y": y, "state mean": mean, "state var": var, "state count": count}
    return values | {f"d{name}": gradients[name] for name in ("x", "weight", "bias", "mean", "var") if name in arrays}


def program(spec: Spec, mode: str, implementation: str) -> tuple[Callable, Arrays]:
    """A program of `spec` and its abstract argument."""
    arrays = spec.arrays()
    if mode == MODES[0]:
        del arrays["dy"]
        return lambda arrays: _norm(spec, implementation, arrays, return_state=spec.state), arrays

    def forward_backward(arrays):
        moving = {name: arrays[name] for name in _MOVING if name in arrays}
        y, pullback = jax.vjp(lambda moving: _norm(spec, implementation, arrays | moving), moving)
        return y, pullback(arrays["dy"])[0]

    return forward_backward, arrays


def _norm(spec: Spec, implementation: str, arrays: dict, *, return_state: bool = False):
    if implementation == SUMS:
        y, *state = _cumulative_sums(spec, **{name: arrays[name] for name in ("x", "weight", "bias")})
        return (y, tuple(state)) if return_state else y
    return timestep_norm(
        arrays["x"],
        arrays.get("weight"),
        arrays.get("bias"),
        num_groups=spec.groups,
        state=(arrays["count"], arrays["mean"], arrays["var"]) if spec.state else None,
        mask=arrays.get("mask"),
        segment_ids=arrays.get("segment_ids"),
        statistics=spec.statistics,
        return_state=return_state,
        implementation=implementation,
    )


def _cumulative_sums(spec: Spec, x, weight, bias):
    """y in the dtype of x, computed in float32; count, mean and variance at the end."""
    y, mean, var = cumulative_sums(x.astype(jnp.float32), weight, bias, num_groups=spec.groups)
    return y.astype(x.dtype), jnp.full(spec.batch, spec.length, jnp.int32), mean, var


def baselines(spec: Spec) -> tuple[str, ...]:
    """The form in which the problem is usually written, where there is one without mask, documents and state."""
    other = spec.mask or spec.segments or spec.state or not spec.affine or spec.statistics != "token_mean"
    return () if other else (SUMS,)


def launches(spec: Spec, gpu: Architecture) -> tuple[Launch, ...]:
    """Every kernel with its tiles, on a GPU."""
    options = {"num_groups": spec.groups, "statistics": spec.statistics}
    return heuristic.launches(gpu, spec.arrays()["x"], **options)


def walk(spec: Spec, mode: str, kernel: Kernel) -> Walk:
    """One loop over the tiles of a chunk; loops inside it walk the documents of a tile, taken to be one."""
    plan = launches(spec, kernel.target.architecture)
    tiles = next(launch.tiles for launch in plan if launch.kernel == kernel.name.removesuffix("_totals"))
    problem = Problem(spec.batch, spec.length, spec.features, spec.groups, 0.0, spec.statistics)
    return Walk(
        tile={"tokens": tiles.block_length, "chunks": kernel.grid[2]},
        elements=tiles.block_length * spec.features // spec.groups,
        trips=(-(-problem.chunks(tiles)[1] // tiles.block_length),),
        others=1,
    )


def alike(call: TritonCall) -> list[tuple[list[int], int]]:
    """One group of one sequence through all its chunks: every group of every sequence does the same."""
    groups, batch, chunks = call.grid
    return [([number * groups * batch for number in range(chunks)], groups * batch)]


def cached(spec: Spec) -> set[tuple[int, ...]]:
    """Shapes of weight and bias, and of marks of tokens."""
    return {(spec.features,), (spec.batch, spec.length)}


def least_multiply_adds(spec: Spec, mode: str) -> int:
    """No matrix products."""
    return 0
