"""Parity of a kernel: its error and the XLA reference's against the float64 oracle, on a spec, side by side.

The kernel runs in one of three ways, the rungs of the ladder: interpreted by Pallas ("triton_interpret"), its lowered
Triton IR executed on CPU ("lowered"), or on a GPU ("triton").
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import timestep_norm, use_tiles
from pallas_kernels.timestep_norm.launch import BACKWARD, FORWARD
from pallas_kernels.timestep_norm.specs import Spec
from reference import oracle_numpy

RUNGS = ("triton_interpret", "lowered", "triton")


@dataclass(frozen=True)
class Errors:
    """Against the float64 oracle, in units of its RMS (of 1 where the oracle is 0)."""

    relative_rms: float
    max_abs: float


@dataclass(frozen=True)
class Line:
    """One output or gradient of one spec: what the kernel and the XLA reference gave, their errors, and its dtype."""

    name: str
    kernel: Errors
    reference: Errors
    peak: float  # largest magnitude of the oracle's values, in units of their RMS
    dtype: str
    gradient: bool


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
        found["segment_ids"] = _documents(r, B, L)
    if spec.state:
        found["count"] = r.integers(1, 9, B).astype(np.int32)
        found["count"][0] = 0
        found["var"] = r.uniform(0.2, 2.0, (B, G)).astype(np.float32)
    found["dmean"], found["dvar"] = (r.normal(size=(B, G)).astype(np.float32) for _ in range(2))
    return found


def _documents(r: np.random.Generator, batch: int, length: int) -> np.ndarray:
    """Documents of odd lengths, with padding (0) inside, in front or behind, and an id that comes back."""
    ids = np.zeros((batch, length), np.int32)
    for row in range(batch):
        cuts = np.sort(r.choice(np.arange(1, length), size=min(length - 1, 6), replace=False))
        for index, piece in enumerate(np.split(np.arange(length), cuts)):
            ids[row, piece] = (1, 2, 0, 2, 3, 1)[(index + row) % 6]
    return ids


def program(spec: Spec, implementation: str) -> Callable[[dict], dict[str, jax.Array]]:
    """Function of the arrays of `inputs`: every output and gradient of the op by name."""

    def run(arrays: dict) -> dict[str, jax.Array]:
        fixed = {key: arrays[key] for key in ("mask", "segment_ids") if key in arrays}
        moving = {key: arrays[key] for key in ("x", "weight", "bias", "mean", "var") if key in arrays}

        def op(moving: dict):
            state = (arrays["count"], moving["mean"], moving["var"]) if spec.state else None
            y, (count, mean, var) = timestep_norm(
                moving["x"], moving.get("weight"), moving.get("bias"), num_groups=spec.groups, state=state,
                statistics=spec.statistics, return_state=True, implementation=implementation, **fixed,
            )  # fmt: skip
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


def evaluate(spec: Spec, arrays: dict[str, np.ndarray], rung: str) -> dict[str, np.ndarray]:
    """Outputs and gradients of the kernel on one rung, or of the reference (rung "xla")."""
    tiles = {} if spec.tiles is None else {FORWARD: spec.tiles, BACKWARD: spec.tiles}
    device = {key: jnp.asarray(array) for key, array in arrays.items()}
    with use_tiles(**tiles):
        return run(rung, lambda implementation, device: program(spec, implementation)(device), device)


def run(rung: str, function: Callable, *arguments):
    """NumPy results of `function(implementation, *arguments)` on one rung, or by the reference (rung "xla")."""
    if rung == "lowered":
        from bench.inspect.triton_ir import execute

        found, _ = execute(lambda *arguments: function("triton", *arguments), *arguments)
    else:
        found = jax.jit(function, static_argnums=0)(rung, *arguments)
    return jax.tree.map(np.asarray, found)


def compare(spec: Spec, rung: str, seed: int = 0) -> list[Line]:
    """One line per output and gradient."""
    arrays = inputs(spec, seed)
    return compare_values(truth(spec, arrays), evaluate(spec, arrays, rung), evaluate(spec, arrays, "xla"))


def compare_values(
    expected: dict[str, np.ndarray], kernel: dict[str, np.ndarray], reference: dict[str, np.ndarray]
) -> list[Line]:
    """One line for every value of the oracle."""
    return [
        Line(
            name=name,
            kernel=errors(kernel[name], value),
            reference=errors(reference[name], value),
            peak=float(np.abs(value).max() / scale(value)),
            dtype=str(reference[name].dtype),
            gradient=name.startswith("d"),
        )
        for name, value in expected.items()
    ]


def errors(value: np.ndarray, expected: np.ndarray) -> Errors:
    """Of `value` against the oracle."""
    if value.shape != expected.shape:
        raise ValueError(f"errors: shape {value.shape}, expected {expected.shape}.")
    difference, unit = np.abs(np.asarray(value, np.float64) - expected), scale(expected)
    return Errors(float(np.sqrt(np.mean(difference**2)) / unit), float(difference.max() / unit))


def scale(expected: np.ndarray) -> float:
    """RMS of the oracle's values."""
    rms = float(np.sqrt(np.mean(np.square(expected, dtype=np.float64))))
    return rms if rms > 1e-12 else 1.0  # zero, or the rounding noise of float64 about zero
