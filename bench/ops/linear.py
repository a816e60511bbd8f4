"""fused_linear as a subject of parity and of static figures; round_weights is a part of the specs that have `rounded`.

forward             (inputs) -> y
forward+backward    (dy, inputs) -> (y, all gradients)
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from bench.inspect import Kernel
from bench.inspect.lowering import TritonCall
from bench.ops.walk import Walk
from bench.programs import MODES
from pallas_kernels import fused_linear, round_weights
from pallas_kernels._architecture import Architecture
from pallas_kernels._tiles import Launch
from pallas_kernels.fused_linear import tiles as heuristic
from pallas_kernels.fused_linear.launch import DW, DX, FORWARD
from pallas_kernels.fused_linear.specs import Spec
from reference import oracle_numpy_linear

NAME = "fused_linear"
KERNELS = (FORWARD, DX, DW)

Arrays = dict[str, jax.ShapeDtypeStruct]


def describe(spec: Spec) -> str:
    """Its sizes and options."""
    outputs = " and ".join(map(str, spec.layers))
    sizes = f"B = {spec.batch}, L = {spec.length}, D = {spec.features}, O = {outputs}"
    options = [spec.activation or "no activation", np.dtype(spec.weight_dtype).name + " weight"]
    options += [name for name in ("bias", "x_bias", "residual", "gate", "rounded") if getattr(spec, name)]
    return ", ".join([sizes, np.dtype(spec.dtype).name, *options])


def inputs(spec: Spec, seed: int = 0) -> dict[str, np.ndarray]:
    """Random arrays for a spec, the cotangent dy included; the product is of the size of what is added to it."""
    r = np.random.default_rng(seed)
    scale = lambda name: spec.features**-0.5 if name.startswith("weight") else 1.0  # noqa: E731
    return {name: np.asarray(r.normal(0.0, scale(name), a.shape), a.dtype) for name, a in spec.arrays().items()}


def moving(arrays: dict) -> dict:
    """All but the cotangents."""
    return {name: array for name, array in arrays.items() if not name.startswith("dy")}


def call(spec: Spec, given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of fused_linear."""
    each = ("weight", "bias", "residual")
    shared = {name: array for name, array in given.items() if not name.startswith(each)}
    of_layers = {name: tuple(given.get(f"{name}_{n}") for n in range(len(spec.layers))) for name in each}
    if not isinstance(spec.outputs, tuple):
        of_layers = {name: arrays[0] for name, arrays in of_layers.items()}
    return shared | of_layers | {"activation": spec.activation}


def values(spec: Spec, implementation: str) -> Callable[[dict], dict[str, jax.Array]]:
    """Function of the arrays of `inputs`: y and the gradients by name."""

    def run(arrays: dict) -> dict[str, jax.Array]:
        ys, pullback = jax.vjp(lambda given: _linear(spec, implementation, given), moving(arrays))
        gradients = pullback(tuple(arrays[f"dy_{n}"] for n in range(len(ys))))[0]
        return {f"y_{n}": y for n, y in enumerate(ys)} | {f"d{name}": d for name, d in gradients.items()}

    return run


def truth(spec: Spec, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same from the float64 oracle."""
    wide = {name: array.astype(np.float64) for name, array in arrays.items()}
    shared = {name: wide[name] for name in ("x", "x_bias", "gate", "gate_bias") if name in wide}
    found: dict[str, Any] = {f"d{name}": 0.0 for name in shared}
    for n in range(len(spec.layers)):
        own = {name: wide[f"{name}_{n}"] for name in ("weight", "bias", "residual") if f"{name}_{n}" in wide}
        found[f"y_{n}"] = oracle_numpy_linear.fused_linear(**shared, **own, activation=spec.activation)
        gradients = oracle_numpy_linear.fused_linear_vjp(
            **shared, **own, activation=spec.activation, dy=wide[f"dy_{n}"]
        )
        found |= {f"d{name}_{n}": gradients[name] for name in own}
        found |= {f"d{name}": found[f"d{name}"] + gradients[name] for name in shared}
    return found


def program(spec: Spec, mode: str, implementation: str) -> tuple[Callable, Arrays]:
    """A program of `spec` and its abstract argument."""
    arrays = spec.arrays()
    if mode == MODES[0]:
        return lambda arrays: _linear(spec, implementation, arrays), moving(arrays)
    return values(spec, implementation), arrays


def _linear(spec: Spec, implementation: str, arrays: dict) -> tuple[jax.Array, ...]:
    given = call(spec, arrays)
    if spec.rounded:
        copies = round_weights(*jax.tree.leaves(given["weight"]), dtype=spec.dtype, implementation=implementation)
        given["rounded"] = jax.tree.unflatten(jax.tree.structure(given["weight"]), copies)
    ys = fused_linear(**given, implementation=implementation)
    return ys if isinstance(ys, tuple) else (ys,)


def baselines(spec: Spec) -> tuple[str, ...]:
    """None: the XLA reference is the only other implementation."""
    return ()


def launches(spec: Spec, gpu: Architecture) -> tuple[Launch, ...]:
    """Every kernel with its tiles, on a GPU."""
    return heuristic.launches(gpu, **call(spec, moving(spec.arrays())))


def walk(spec: Spec, mode: str, kernel: Kernel) -> Walk:
    """Matrix products are what takes time: only their tiles."""
    tiles = next(launch.tiles for launch in launches(spec, kernel.target.architecture) if launch.kernel == kernel.name)
    shown = {"rows": tiles.block_m, "columns": tiles.block_n, "terms": tiles.block_k, "stages": tiles.num_stages}
    return Walk(shown | {"splits": tiles.num_splits}, elements=0, trips=None, others=0)


def alike(call: TritonCall) -> list[tuple[list[int], int]]:
    """The programs of the first block of columns, which alone store the gradient of the bias, and the others."""
    columns, rows, splits = call.grid
    others = [([columns - 1], (columns - 1) * rows * splits)] if columns > 1 else []
    return [([0], rows * splits), *others]


def cached(spec: Spec) -> set[tuple[int, ...]]:
    """Shapes of the biases."""
    return {array.shape for name, array in spec.arrays().items() if "bias" in name}


def least_multiply_adds(spec: Spec, mode: str) -> int:
    """One product forward, two backward."""
    return spec.batch * spec.length * spec.features * sum(spec.layers) * (1 if mode == MODES[0] else 3)
