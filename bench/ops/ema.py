"""complex_ema as a subject of parity and of static figures.

forward             (inputs) -> y; for a spec that returns its state, (y, h)
forward+backward    (dy, inputs) -> (y, all gradients)
"""

import re
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from bench.formulations.ema import associative_scan, fft_convolution
from bench.inspect import Kernel
from bench.inspect.lowering import TritonCall
from bench.ops.documents import documents
from bench.ops.walk import Walk
from bench.programs import MODES
from pallas_kernels import complex_ema
from pallas_kernels._architecture import Architecture
from pallas_kernels._tiles import Launch, Tiles
from pallas_kernels.complex_ema import tiles as heuristic
from pallas_kernels.complex_ema.launch import BACKWARD, ENDS, ENDS_BLOCK, FORWARD, JOIN
from pallas_kernels.complex_ema.math import STEADY
from pallas_kernels.complex_ema.problem import LANES, Problem
from pallas_kernels.complex_ema.specs import Spec
from pallas_kernels.complex_ema.triton_forward import LANES_OF_JOIN
from reference import oracle_numpy

NAME = "complex_ema"
KERNELS = (FORWARD, BACKWARD)
FFT, SCAN = "FFT convolution", "associative scan"
_MOVING = ("x", "p", "q", "gamma", "omega", "h0")
_TOKENS = ("mask", "segment_ids")
_EDGES = (0.9, 0.9 + 1e-9j, -0.95, 0.0, 0.8j, 0.99999, 0.99999 * np.exp(0.3j), 0.5, 0.99999, 0.7 + 0.1j)

Arrays = dict[str, jax.ShapeDtypeStruct]


def describe(spec: Spec) -> str:
    """Its sizes and options."""
    sizes = f"B = {spec.batch}, L = {spec.length}, D = {spec.features}, N = {spec.states}"
    options = [option for option in ("omega", "mask", "segments", "h0", "returned") if getattr(spec, option)]
    return ", ".join([sizes, np.dtype(spec.dtype).name, *options])


def inputs(spec: Spec, seed: int = 0) -> dict[str, np.ndarray]:
    """Random arrays for a spec, the cotangents dy and dh included; x and dy already in its dtype."""
    r = np.random.default_rng(seed)
    D, N = spec.features, spec.states
    found: dict[str, np.ndarray] = {}
    for name, abstract in spec.arrays().items():
        value = r.normal(size=abstract.shape)
        if abstract.dtype == jnp.complex64:
            value = value + 1j * r.normal(size=abstract.shape)
        found[name] = np.asarray(value, abstract.dtype)
    found["p"] = r.uniform(0.05, 1.0, (D, N)).astype(np.float32)
    radius = r.uniform(0.0, 0.999, (D, N)) if spec.decays == "usual" else np.full((D, N), 0.99999)
    q = radius * np.exp(1j * r.uniform(-np.pi, np.pi, (D, N)))
    if spec.decays == "rounded":
        q = _hardest(0.99999 * np.exp(1j * r.uniform(-np.pi, np.pi, (256, D, N))))
    if spec.decays == "edges":
        q[:] = np.resize(_EDGES, D)[:, None]
        found["p"][-2:], found["gamma"][-3] = 0.0, 0.0
    found["q"] = q.astype(np.complex64)
    if spec.mask:
        found["mask"] = r.random((spec.batch, spec.length)) > 0.3
        found["mask"][-1] = spec.batch == 1  # a row without a token
    if spec.segments:
        found["segment_ids"] = documents(r, spec.batch, spec.length)
    return found


def _hardest(candidates: np.ndarray) -> np.ndarray:
    """Of the candidates [K, D, N] those whose squared imaginary part loses most when it is rounded to float32."""
    im = candidates.astype(np.complex64).imag.astype(np.float64)
    lost = np.abs(np.abs(im) - np.sqrt(np.square(im).astype(np.float32).astype(np.float64)))
    return np.take_along_axis(candidates, np.argmax(lost, axis=0)[None], axis=0)[0]


def values(spec: Spec, implementation: str) -> Callable[[dict], dict[str, jax.Array]]:
    """Function of the arrays of `inputs`: every output and gradient of the op by name."""

    def run(arrays: dict) -> dict[str, jax.Array]:
        moving = {key: arrays[key] for key in _MOVING if key in arrays}
        op = lambda moving: _ema(spec, implementation, arrays | moving)  # noqa: E731
        found, pullback = jax.vjp(op, moving)
        y, h = found if spec.returned else (found, None)
        gradients = pullback((arrays["dy"], arrays["dh"]) if spec.returned else arrays["dy"])[0]
        outputs = {"y": y, "state": h} if spec.returned else {"y": y}
        return outputs | {f"d{name}": gradient for name, gradient in gradients.items()}

    return run


def truth(spec: Spec, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same from the float64 oracle, whose complex cotangents are the conjugates of JAX's."""
    given = {key: arrays[key].astype(np.result_type(arrays[key].dtype, np.float32)) for key in _MOVING if key in arrays}
    given |= {key: arrays[key] for key in _TOKENS if key in arrays}
    y, h = oracle_numpy.complex_ema(**given)
    dh = np.conj(arrays["dh"]) if spec.returned else None
    gradients = oracle_numpy.complex_ema_vjp(**given, dy=np.asarray(arrays["dy"], np.float64), dh=dh)
    outputs = {"y": y, "state": h} if spec.returned else {"y": y}
    return outputs | {f"d{name}": np.conj(gradients[name]) for name in _MOVING if name in arrays}


def program(spec: Spec, mode: str, implementation: str) -> tuple[Callable, Arrays]:
    """A program of `spec` and its abstract argument."""
    arrays = spec.arrays()
    if mode == MODES[0]:
        del arrays["dy"]
        return lambda arrays: _ema(spec, implementation, arrays), arrays

    def forward_backward(arrays):
        moving = {name: arrays[name] for name in _MOVING if name in arrays}
        found, pullback = jax.vjp(lambda moving: _ema(spec, implementation, arrays | moving), moving)
        y = found[0] if spec.returned else found
        return y, pullback((arrays["dy"], arrays["dh"]) if spec.returned else arrays["dy"])[0]

    return forward_backward, arrays


def _ema(spec: Spec, implementation: str, arrays: dict):
    if implementation in (FFT, SCAN):
        return _baseline(implementation, **arrays)
    options = {key: arrays.get(key) for key in (*_TOKENS, "h0")}
    given = [arrays.get(key) for key in _MOVING[:-1]]
    run = partial(complex_ema, *given, **options, implementation=implementation)
    return run(return_state=True) if spec.returned else run()


def _baseline(name: str, *, x, p, q, gamma, omega=None, dy=None, **documents):
    """y in the dtype of x; computed in float32."""
    wide = x.astype(jnp.float32)
    y = (fft_convolution if name == FFT else associative_scan)(wide, p, q, gamma, **documents)
    return (y if omega is None else y + omega * wide).astype(x.dtype)


def baselines(spec: Spec) -> tuple[str, ...]:
    """The forms in which the problem is usually written, where there is one without mask and state."""
    if spec.mask or spec.h0 or spec.returned:
        return ()
    return (SCAN,) if spec.segments else (FFT, SCAN)


def launches(spec: Spec, gpu: Architecture) -> tuple[Launch, ...]:
    """Every kernel with its tiles, on a GPU."""
    arrays = spec.arrays()
    options = {"segment_ids": arrays.get("segment_ids"), "return_state": spec.returned}
    return heuristic.launches(gpu, arrays["x"], arrays["p"], **options)


def walk(spec: Spec, mode: str, kernel: Kernel) -> Walk:
    """Stretches of STEADY steps, tiles inside them, no tile walked step by step; joining, a step for each chunk."""
    tiles = {launch.kernel: launch.tiles for launch in launches(spec, kernel.target.architecture)}
    parts = tiles[FORWARD if mode == MODES[0] else BACKWARD].num_chunks  # what is saved is saved at those
    chunks, chunk = Problem(spec.batch, spec.length, spec.features, spec.states).chunks(Tiles(1, parts, 1))
    name = re.sub(r"__\d+$", "", kernel.name)  # XLA numbers equal names
    if name == JOIN:
        # The compilers unroll the loop over chunks; a step has two stores.
        longest = max(kernel.loops, key=lambda loop: len(loop.instructions), default=None)
        unrolled = chunks - 1 if longest is None else longest.histogram["STG"] // 2
        elements = LANES_OF_JOIN * chunk // spec.states
        tile = {"tokens": unrolled * chunk, "chunks": chunks}
        return Walk(tile, unrolled * elements, (-(-(chunks - 1) // unrolled),), others=1)
    steps = min(chunk, spec.length)
    own = tiles[BACKWARD if name == BACKWARD else FORWARD]
    block = ENDS_BLOCK if name == ENDS else own.block_length
    elements = block * LANES * own.num_warps
    whole = steps // block
    stretch = min(STEADY // block, whole)
    return Walk(
        {"tokens": block, "chunks": chunks}, elements, (-(-steps // STEADY), stretch), others=0 if whole else steps
    )


def alike(call: TritonCall) -> list[tuple[list[int], int]]:
    """One block of features of one sequence, its first chunk for all but the last: what others do is the same."""
    blocks, middle, last = call.grid
    if call.name == JOIN:  # blocks, batch
        return [([0], blocks * middle)]
    return [([0], (middle - 1) * blocks * last), ([(middle - 1) * blocks], blocks * last)]


def cached(spec: Spec) -> set[tuple[int, ...]]:
    """Shapes of the coefficients (of each state, of all of them in a row, omega), and of marks of tokens."""
    each = {(spec.states, spec.features), (spec.states * spec.features,), (spec.features,)}
    return {*each, (spec.batch, spec.length)}


def least_multiply_adds(spec: Spec, mode: str) -> int:
    """No matrix products."""
    return 0
