"""Parity of a kernel: its error and the XLA reference's against the float64 oracle, on a spec, side by side.

The kernel runs in one of three ways, the rungs of the ladder: interpreted by Pallas ("triton_interpret"), its lowered
Triton IR executed on CPU ("lowered"), or on a GPU ("triton").
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from bench import ops
from bench.ops import Spec
from pallas_kernels import use_tiles

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
    peak: float  # largest magnitude of the oracle's values, in units of their RMS (of 1 where the oracle is 0)
    dtype: str
    gradient: bool


def evaluate(spec: Spec, arrays: dict[str, np.ndarray], rung: str) -> dict[str, np.ndarray]:
    """Outputs and gradients of the kernel on one rung, or of the reference (rung "xla")."""
    device = {key: jnp.asarray(array) for key, array in arrays.items()}
    with tiles_of(spec):
        return run(rung, lambda implementation, device: ops.of(spec).values(spec, implementation)(device), device)


def tiles_of(spec: Spec):
    """Context manager: kernels launched as the spec says, or by the heuristic."""
    return use_tiles(**({} if spec.tiles is None else dict.fromkeys(ops.of(spec).KERNELS, spec.tiles)))


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
    op = ops.of(spec)
    arrays = op.inputs(spec, seed)
    return compare_values(op.truth(spec, arrays), evaluate(spec, arrays, rung), evaluate(spec, arrays, "xla"))


def compare_values(
    expected: dict[str, np.ndarray], kernel: dict[str, np.ndarray], reference: dict[str, np.ndarray]
) -> list[Line]:
    """One line for every value of the oracle."""
    return [
        Line(
            name=name,
            kernel=errors(kernel[name], value),
            reference=errors(reference[name], value),
            peak=max(1.0, float(np.abs(value).max() / scale(value))),  # 1 also where the oracle is 0
            dtype=str(reference[name].dtype),
            gradient=name.startswith("d"),
        )
        for name, value in expected.items()
    ]


def errors(value: np.ndarray, expected: np.ndarray) -> Errors:
    """Of `value` against the oracle."""
    if value.shape != expected.shape:
        raise ValueError(f"errors: shape {value.shape}, expected {expected.shape}.")
    exact = np.asarray(value, np.complex128 if np.iscomplexobj(value) else np.float64)
    difference, unit = np.abs(exact - expected), scale(expected)
    return Errors(float(np.sqrt(np.mean(difference**2)) / unit), float(difference.max() / unit))


def scale(expected: np.ndarray) -> float:
    """RMS of the oracle's values."""
    rms = float(np.sqrt(np.mean(np.square(np.abs(expected), dtype=np.float64))))
    return rms if rms > 1e-12 else 1.0  # zero, or the rounding noise of float64 about zero
