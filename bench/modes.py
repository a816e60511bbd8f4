"""The programs of a problem of an op, all made of its forward f(inputs) -> outputs.

    forward             (inputs) -> outputs
    forward+residuals   (inputs) -> outputs, and what the backward needs of them
    backward            (residuals, cotangents) -> all gradients
    forward+backward    (inputs, cotangents) -> outputs, all gradients

Outputs and gradients are those of floating or complex dtype. linear_cross_entropy has no cotangents, because it gives
its gradients itself: it has the first and the last mode alone.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench import ops
from bench.ops import Spec
from bench.programs import MODES as BOTH
from bench.programs import Program

FORWARD, FORWARD_BACKWARD = BOTH
RESIDUALS, BACKWARD = "forward+residuals", "backward"
MODES = (FORWARD, RESIDUALS, BACKWARD, FORWARD_BACKWARD)

Arrays = dict[str, jax.Array]


@dataclass(frozen=True)
class Built:
    """A compiled program with its arguments, and the seconds that compiling took.

    Attributes:
        run: calls it, and returns its results when they are there.
        memory: bytes of its arguments, results and temporaries, as the compiler planned them.
        values: of what it returns, the named arrays in which implementations have to agree.
    """

    run: Callable[[], Any]
    memory: Any
    compile_seconds: float
    values: Callable[[Any], Arrays]


def modes(spec: Spec) -> tuple[str, ...]:
    """Those that a problem has."""
    return MODES if any(map(ops.is_cotangent, spec.arrays())) else BOTH


def build(spec: Spec, mode: str, implementation: str, inputs: Arrays, seed: int) -> Built:
    """Compile a program for `inputs` on the default device; cotangents are drawn by `seed`.

    Raises:
        pallas_kernels.KernelUnavailable: the implementation refuses the problem.
    """
    if modes(spec) == BOTH:
        function, arrays = ops.of(spec).program(spec, mode, implementation)
        return _compile(lambda given: _named(function(given), "output"), {name: inputs[name] for name in arrays})
    forward, arrays = ops.of(spec).program(spec, FORWARD, implementation)
    given = {name: inputs[name] for name in arrays if not ops.is_cotangent(name)}
    moving = {name: array for name, array in given.items() if _moves(array)}
    fixed = {name: array for name, array in given.items() if name not in moving}

    def run(moving: Arrays, fixed: Arrays) -> Arrays:
        return _named(forward(fixed | moving), "output")

    def with_residuals(moving, fixed):
        return jax.vjp(lambda moving: run(moving, fixed), moving)

    def gradients(pullback, cotangents) -> Arrays:
        return {f"d{name}": gradient for name, gradient in pullback(cotangents)[0].items()}

    def both(moving, fixed, cotangents):
        outputs, pullback = with_residuals(moving, fixed)
        return outputs | gradients(pullback, cotangents)

    if mode == FORWARD:
        return _compile(run, moving, fixed)
    if mode == RESIDUALS:
        return _compile(with_residuals, moving, fixed, values=lambda found: found[0])
    cotangents = _cotangents(jax.eval_shape(run, moving, fixed), seed)
    if mode == FORWARD_BACKWARD:
        return _compile(both, moving, fixed, cotangents)
    _, pullback = jax.jit(with_residuals)(moving, fixed)
    return _compile(gradients, pullback, cotangents)


def timed_compile(jitted: Any, *arguments) -> tuple[jax.stages.Compiled, float]:
    """A jitted function compiled for arguments, and the seconds that tracing and compiling took."""
    start = time.perf_counter()
    return jitted.lower(*arguments).compile(), time.perf_counter() - start


def _compile(function: Callable, *arguments, values: Callable = lambda found: found) -> Built:
    compiled, seconds = timed_compile(jax.jit(function), *arguments)
    return Built(Program(compiled, arguments), compiled.memory_analysis(), seconds, values)


def _named(found, name: str) -> Arrays:
    leaves = jax.tree_util.tree_flatten_with_path(found)[0]
    return {f"{name}{jax.tree_util.keystr(path)}": leaf for path, leaf in leaves if _moves(leaf)}


def _moves(array) -> bool:
    return jnp.issubdtype(array.dtype, jnp.inexact)


def _cotangents(outputs: dict[str, jax.ShapeDtypeStruct], seed: int) -> Arrays:
    r = np.random.default_rng(seed)

    def normal(like: jax.ShapeDtypeStruct) -> jax.Array:
        value = r.standard_normal(like.shape, np.float32)
        if jnp.issubdtype(like.dtype, jnp.complexfloating):
            value = value + 1j * r.standard_normal(like.shape, np.float32)
        return jnp.asarray(value, like.dtype)

    return {name: normal(like) for name, like in outputs.items()}
