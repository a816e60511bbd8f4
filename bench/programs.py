"""The complex EMA programs that are measured: inputs, forward, forward+backward, compiled ahead of the clock.

Inputs are random: x, dy, p and gamma normal, the phases of q uniform, and 1 - |q| log-uniform in
[1 - 0.999, 1 - 0.6], so that memories from a few steps to a thousand are equally frequent per octave.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from bench.formulations.ema import fft_convolution, sequential_scan
from reference import complex_ema

SMALLEST_MODULUS, LARGEST_MODULUS = 0.6, 0.999
MODES = ("forward", "forward+backward")
IMPLEMENTATIONS = {"ours": complex_ema, "fft": fft_convolution, "scan": sequential_scan}
PACKED = "ours packed"


class Inputs(NamedTuple):
    """Random arrays of one length; `segment_ids` is for the packed program only."""

    dy: np.ndarray
    x: np.ndarray
    p: np.ndarray
    q: np.ndarray
    gamma: np.ndarray
    segment_ids: np.ndarray


def random_inputs(batch: int, length: int, features: int, states: int, mean_document: int, seed: int) -> Inputs:
    """float32 and complex64 inputs; a document ends after every token with probability 1 / mean_document."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.standard_normal(shape, dtype=np.float32)

    short, long = np.log(1 - SMALLEST_MODULUS), np.log(1 - LARGEST_MODULUS)
    modulus = 1 - np.exp(rng.uniform(long, short, (features, states)))
    phase = rng.uniform(-np.pi, np.pi, (features, states))
    starts = rng.random((batch, length)) < 1 / mean_document
    return Inputs(
        dy=normal(batch, length, features),
        x=normal(batch, length, features),
        p=normal(features, states),
        q=(modulus * np.exp(1j * phase)).astype(np.complex64),
        gamma=(normal(features, states) + 1j * normal(features, states)).astype(np.complex64),
        segment_ids=1 + np.cumsum(starts, axis=1, dtype=np.int32),
    )


@dataclass(frozen=True)
class Program:
    """A compiled program with its arguments; calling it waits for the result."""

    compiled: jax.stages.Compiled
    arguments: tuple

    def __call__(self) -> tuple:
        """The program's outputs: (y,) or (y, dx, dp, dq, dgamma)."""
        return jax.block_until_ready(self.compiled(*self.arguments))

    def temp_bytes(self) -> int:
        """Peak temporary memory the compiler planned, beside arguments and outputs."""
        analysis = self.compiled.memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes


def compile_programs(inputs: Inputs, mode: str) -> dict[str, Program]:
    """Every implementation, and our packed path, as one program each."""
    arrays = Inputs(*(jax.device_put(a) for a in inputs))
    ours_packed = partial(complex_ema, segment_ids=arrays.segment_ids)
    functions = {**IMPLEMENTATIONS, PACKED: ours_packed}
    return {name: _compile(function, arrays, mode) for name, function in functions.items()}


def _compile(function: Callable, inputs: Inputs, mode: str) -> Program:
    arguments = inputs[1:5] if mode == "forward" else inputs[:5]
    program = _forward(function) if mode == "forward" else _forward_backward(function)
    return Program(jax.jit(program).lower(*arguments).compile(), arguments)


def _forward(function: Callable):
    return lambda *arguments: (function(*arguments),)


def _forward_backward(function: Callable):
    def program(dy, *arguments):
        y, pull_back = jax.vjp(function, *arguments)
        return y, *pull_back(dy)

    return program
