"""linear_cross_entropy as a subject of parity and of static figures.

forward             (inputs) -> losses
forward+backward    (inputs) -> (losses, both gradients)
"""

from collections.abc import Callable

import jax
import numpy as np

from bench.inspect import Kernel
from bench.inspect.lowering import TritonCall
from bench.ops.walk import Walk
from bench.programs import MODES
from pallas_kernels import linear_cross_entropy
from pallas_kernels._architecture import Architecture
from pallas_kernels._tiles import Launch
from pallas_kernels.linear_cross_entropy import tiles as heuristic
from pallas_kernels.linear_cross_entropy.launch import DHIDDEN, DWEIGHT, FORWARD
from pallas_kernels.linear_cross_entropy.specs import Spec
from reference import oracle_numpy_cross_entropy

NAME = "linear_cross_entropy"
KERNELS = (FORWARD, DHIDDEN, DWEIGHT)
RESULTS = ("losses", "dhidden", "dweight")

Arrays = dict[str, jax.ShapeDtypeStruct]


def describe(spec: Spec) -> str:
    """Its sizes and options."""
    sizes = f"T = {spec.length}, D = {spec.features}, V = {spec.vocabulary}"
    return ", ".join([sizes, np.dtype(spec.dtype).name, *(["so_far"] if spec.so_far else [])])


def inputs(spec: Spec, seed: int = 0) -> dict[str, np.ndarray]:
    """Random arrays for a spec: logits of its size, a fifth of the tokens but the first without a factor."""
    r = np.random.default_rng(seed)
    factors = r.uniform(0.1, 1.0, spec.length) * (r.random(spec.length) > 0.2)
    factors[0] = 1.0
    made = {
        "hidden": r.normal(0.0, 1.0, (spec.length, spec.features)),
        "weight": r.normal(0.0, spec.size * spec.features**-0.5, (spec.vocabulary, spec.features)),
        "targets": r.integers(0, spec.vocabulary, spec.length),
        "factors": factors,
        "so_far": r.normal(0.0, 1.0, (spec.vocabulary, spec.features)),
    }
    return {name: np.asarray(made[name], array.dtype) for name, array in spec.arrays().items()}


def values(spec: Spec, implementation: str) -> Callable[[dict], dict[str, jax.Array]]:
    """Function of the arrays of `inputs`: losses and gradients by name."""
    return lambda arrays: dict(zip(RESULTS, linear_cross_entropy(**arrays, implementation=implementation), strict=True))


def truth(spec: Spec, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same from the float64 oracle."""
    return dict(zip(RESULTS, oracle_numpy_cross_entropy.linear_cross_entropy(**arrays), strict=True))


def program(spec: Spec, mode: str, implementation: str) -> tuple[Callable, Arrays]:
    """A program of `spec` and its abstract argument."""
    everything, arrays = values(spec, implementation), spec.arrays()
    if mode == MODES[0]:
        arrays.pop("so_far", None)
        return lambda arrays: everything(arrays)["losses"], arrays
    return everything, arrays


def baselines(spec: Spec) -> tuple[str, ...]:
    """None: the XLA reference is the only other implementation."""
    return ()


def launches(spec: Spec, gpu: Architecture) -> tuple[Launch, ...]:
    """Every kernel with its tiles, on a GPU."""
    return heuristic.launches(gpu, **spec.arrays())


def walk(spec: Spec, mode: str, kernel: Kernel) -> Walk:
    """Matrix products are what takes time: only their tiles."""
    tiles = next(launch.tiles for launch in launches(spec, kernel.target.architecture) if launch.kernel == kernel.name)
    shown = {"rows": tiles.block_m, "columns": tiles.block_n, "terms": tiles.block_k, "stages": tiles.num_stages}
    return Walk(shown | {"splits": tiles.num_splits}, elements=0, trips=None, others=0)


def alike(call: TritonCall) -> None:
    """Factors decide which rows are read, and targets who writes their logits."""


def cached(spec: Spec) -> set[tuple[int, ...]]:
    """Shapes of what there is one of for each token."""
    return {(spec.length,)}


def least_multiply_adds(spec: Spec, mode: str) -> int:
    """One product for the losses, two for the gradients."""
    return spec.length * spec.features * spec.vocabulary * (1 if mode == MODES[0] else 3)
