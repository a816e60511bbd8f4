"""chunked_attention as a subject of parity and of static figures.

forward             (inputs) -> o
forward+backward    (do, inputs) -> (o, dq, dk, dv)
"""

from collections.abc import Callable
from dataclasses import asdict

import jax
import jax.numpy as jnp
import numpy as np

from bench.formulations.attention import attention_by_value_tiles, dense_attention
from bench.inspect import Kernel
from bench.inspect.lowering import TritonCall
from bench.ops.documents import documents
from bench.ops.walk import Walk
from bench.programs import MODES
from pallas_kernels import chunked_attention
from pallas_kernels._architecture import Architecture
from pallas_kernels._tiles import Launch
from pallas_kernels.chunked_attention import tiles as heuristic
from pallas_kernels.chunked_attention.launch import DK, DQ, DV, FORWARD, GATE
from pallas_kernels.chunked_attention.specs import Spec
from reference import oracle_numpy

NAME = "chunked_attention"
KERNELS = (FORWARD, GATE, DQ, DK, DV)
DENSE, VALUE_TILES = "dense, masked", "value tiles as heads"
MOVING = ("q", "k", "v", "cached_k", "cached_v", "gate", "v_bias", "gate_bias")
_FORMULATIONS = {DENSE: dense_attention, VALUE_TILES: attention_by_value_tiles}
_FIXED = ("mask", "segment_ids", "cached_length")

Arrays = dict[str, jax.ShapeDtypeStruct]


def describe(spec: Spec) -> str:
    """Its sizes and options."""
    sizes = f"B = {spec.batch}, L = {spec.length}, H = {spec.heads}, Dk = {spec.depth}, Dv = {spec.width}"
    options = [option for option in ("mask", "segments", "activated", "gated") if getattr(spec, option)]
    if spec.cached:
        options.append(f"up to {spec.cached} cached keys")
    return ", ".join([sizes, f"chunks of {spec.chunk}", np.dtype(spec.dtype).name, *options])


def inputs(spec: Spec, seed: int = 0) -> dict[str, np.ndarray]:
    """Random arrays for a spec, the cotangent do included."""
    r = np.random.default_rng(seed)
    found: dict[str, np.ndarray] = {}
    for name, abstract in spec.arrays().items():
        scale = spec.scale if name == "q" else 1.0
        found[name] = np.asarray(scale * r.normal(size=abstract.shape), abstract.dtype)
    if spec.mask:
        found["mask"] = r.random((spec.batch, spec.length)) > 0.3
        found["mask"][-1] = spec.batch == 1  # a row without a key
    if spec.segments:
        found["segment_ids"] = documents(r, spec.batch, spec.length)
    if spec.cached:  # none, all there is room for, and in between
        most = min(spec.cached, spec.chunk)
        found["cached_length"] = np.asarray([0, most, 1, most - 1, *r.integers(0, most, spec.batch)], np.int32)
        found["cached_length"] = found["cached_length"][: spec.batch]
    return found


def values(spec: Spec, implementation: str) -> Callable[[dict], dict[str, jax.Array]]:
    """Function of the arrays of `inputs`: o and the gradients by name."""

    def run(arrays: dict) -> dict[str, jax.Array]:
        moving = {name: arrays[name] for name in MOVING if name in arrays}
        o, pullback = jax.vjp(lambda moving: _attend(spec, implementation, arrays | moving), moving)
        return {"o": o} | {f"d{name}": gradient for name, gradient in pullback(arrays["do"])[0].items()}

    return run


def truth(spec: Spec, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same from the float64 oracle."""
    given = {name: arrays[name].astype(np.float64) for name in MOVING if name in arrays}
    given |= {name: arrays[name] for name in _FIXED if name in arrays}
    forward, backward = oracle_numpy.chunked_attention, oracle_numpy.chunked_attention_vjp
    if spec.activated:
        forward, backward = oracle_numpy.activated_attention, oracle_numpy.activated_attention_vjp
    if spec.gated:
        forward, backward = oracle_numpy.gated_attention, oracle_numpy.gated_attention_vjp
    o, do = forward(**given, chunk_size=spec.chunk), arrays["do"].astype(np.float64)
    gradients = backward(**given, chunk_size=spec.chunk, do=do)
    return {"o": o} | {f"d{name}": gradients[name] for name in MOVING if name in arrays}


def program(spec: Spec, mode: str, implementation: str) -> tuple[Callable, Arrays]:
    """A program of `spec` and its abstract argument."""
    arrays = spec.arrays()
    if mode == MODES[0]:
        del arrays["do"]
        return lambda arrays: _attend(spec, implementation, arrays), arrays
    return values(spec, implementation), arrays


def _attend(spec: Spec, implementation: str, arrays: dict):
    if implementation in _FORMULATIONS:
        attend = _FORMULATIONS[implementation]
        return attend(*(arrays[name] for name in ("q", "k", "v")), chunk_size=spec.chunk)
    return chunked_attention(**_call(spec, arrays), implementation=implementation)


def _call(spec: Spec, arrays: dict) -> dict:
    given = {name: array for name, array in arrays.items() if name in (*MOVING, *_FIXED)}
    activation = {"v_activation": "silu"} if spec.activated or spec.gated else {}
    return given | activation | {"chunk_size": spec.chunk}


def baselines(spec: Spec) -> tuple[str, ...]:
    """The usual forms, where nothing is masked, packed, activated, gated or cached; one of them for whole chunks."""
    if spec.mask or spec.segments or spec.cached or spec.activated or spec.gated:
        return ()
    return (DENSE,) if spec.length % spec.chunk else (DENSE, VALUE_TILES)


def launches(spec: Spec, gpu: Architecture) -> tuple[Launch, ...]:
    """Every kernel with its tiles, on a GPU."""
    return heuristic.launches(gpu, **_call(spec, spec.arrays()))


def walk(spec: Spec, mode: str, kernel: Kernel) -> Walk:
    """Programs walk differently far: only their tiles."""
    plan = launches(spec, kernel.target.architecture)
    tiles = asdict(next(launch.tiles for launch in plan if launch.kernel == kernel.name))
    shown = {"block_q": "queries", "block_k": "keys", "block_v": "values", "num_stages": "stages"}
    return Walk({name: tiles[field] for field, name in shown.items()}, elements=0, trips=None, others=0)


def alike(call: TritonCall) -> list[tuple[list[int], int]] | None:
    """Every block of tokens of one row, head and slice of values; the others do the same, but for lse, which the first
    slice stores alone. None where tokens are masked or packed."""
    if any(operand.dtype == jnp.int32 for operand in call.operands):
        return None
    slices, blocks, rows = call.grid
    return [([slices - 1 + slices * block for block in range(blocks)], slices * rows)]


def cached(spec: Spec) -> set[tuple[int, ...]]:
    """None: every array is large."""
    return set()


def least_multiply_adds(spec: Spec, mode: str) -> int:
    """For each pair of a query and a key up to it: scores and values; backward scores, dp, dq, dk and dv."""
    whole, rest = divmod(spec.length, spec.chunk)
    pairs = spec.batch * spec.heads * (whole * spec.chunk * (spec.chunk + 1) + rest * (rest + 1)) // 2
    forward, backward = spec.depth + spec.width, 3 * spec.depth + 2 * spec.width
    return pairs * (forward if mode == MODES[0] else forward + backward)
