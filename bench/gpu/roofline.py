"""What a device could do at most: bytes and floating-point operations per second, and the time both allow.

    bound = max(bytes / bandwidth, operations / peak)

For the cards of `bench.inspect.targets` the figures are public ones, for others measured here: a copy of a large array,
and a product of large bfloat16 matrices by XLA. Bytes are arguments and results of a program, each once, so a fraction
of the bound says how far a program is from reading its inputs and writing its results at full bandwidth.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import jax
import jax.numpy as jnp

from bench.gpu.clock import Clock, comparable, interleaved
from bench.gpu.device import Device, card
from bench.inspect.targets import Target
from bench.programs import Program

COPIED = 2**29  # bytes
SIZE = 8192  # rows of the matrices
TRIED_OUT = 64  # times fewer bytes, and rows, on CPU
ROUNDS = 5
# A float32 product of full precision: of bfloat16 parts, six products for each.
FLOAT32_PRODUCTS = 6


@dataclass(frozen=True)
class Roofline:
    """Bytes per second, operations per second by dtype of a matrix product, and where the figures come from."""

    bandwidth: float
    bfloat16: float
    float32: float
    source: str

    def bound_ms(self, moved: int, operations: int, dtype: str) -> float:
        """The least time for so many bytes, and operations of matrix products of "bfloat16" or "float32"."""
        peak = self.bfloat16 if dtype == "bfloat16" else self.float32
        return max(moved / self.bandwidth, operations / peak) * 1e3


def of_device(device: Device, clock: Clock) -> Roofline:
    """Of a card that is known, by its public figures; of another, measured."""
    known = card(device)
    return measured(device, clock) if known is None else public(known)


def public(target: Target) -> Roofline:
    """By the figures of a data sheet."""
    clocks = target.multiprocessors * target.clock
    tensor = 2 * target.tensor_per_clock * clocks
    fused = 2 * target.fp32_per_clock * clocks
    return Roofline(target.bandwidth, tensor, max(fused, tensor / FLOAT32_PRODUCTS), f"public figures of {target.card}")


def measured(device: Device, clock: Clock) -> Roofline:
    """By a copy and two products."""
    part = 1 if device.platform == "gpu" else TRIED_OUT
    rows = SIZE // part
    array = jnp.ones(COPIED // part // 4, jnp.float32)
    narrow, wide = (jnp.ones((rows, rows), dtype) for dtype in (jnp.bfloat16, jnp.float32))
    programs = {
        "copy": _program(lambda x: x + 1, array),
        "bfloat16": _program(lambda x: x @ x, narrow),
        "float32": _program(lambda x: jnp.dot(x, x, precision="highest"), wide),
    }
    _, times = comparable(interleaved(programs, ROUNDS, clock))
    seconds = {name: median(found) / 1e3 for name, found in times.items()}
    products = {name: 2 * rows**3 / seconds[name] for name in ("bfloat16", "float32")}
    return Roofline(2 * array.nbytes / seconds["copy"], **products, source="a copy and products, measured here")


def _program(function: Callable, array: jax.Array) -> Program:
    return Program(jax.jit(function).lower(array).compile(), (array,))
