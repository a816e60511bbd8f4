"""Launching the kernels of normalized_rotary: what they read and write."""

from functools import partial

import jax
import jax.numpy as jnp

from pallas_kernels._backends import triton as backend
from pallas_kernels._tiles import Plan
from pallas_kernels.normalized_rotary import triton
from pallas_kernels.normalized_rotary.problem import Arrays, Problem
from reference.normalized_rotary import digit_angles

FORWARD, BACKWARD = "normalized_rotary_forward", "normalized_rotary_backward"


def forward(plan: Plan, problem: Problem, arrays: Arrays, positions):
    """q, k."""
    like = jax.ShapeDtypeStruct(arrays.z.shape, arrays.z.dtype)
    done = _launch(triton.forward, FORWARD, plan, problem, arrays, positions, {}, {"q": like, "k": like})
    return done.q, done.k


def backward(plan: Plan, problem: Problem, arrays: Arrays, positions, dq, dk) -> Arrays:
    """dz, dscale, dshift and, where there is a bias, dbias."""
    chunks, _ = problem.chunks(plan[BACKWARD])
    sums, own = (
        jax.ShapeDtypeStruct((problem.batch, chunks, *which, problem.heads, problem.depth), jnp.float32)
        for which in ((2,), ())
    )
    outputs = {"dz": jax.ShapeDtypeStruct(arrays.z.shape, arrays.z.dtype), "dscale": sums, "dshift": sums}
    outputs["dbias"] = None if arrays.bias is None else own
    cotangents = {"dq": dq, "dk": dk}
    done = _launch(triton.backward, BACKWARD, plan, problem, arrays, positions, cotangents, outputs)
    parts = (done.dscale, done.dshift, done.dbias)
    return Arrays(done.dz, *(None if part is None else jnp.sum(part, axis=(0, 1)) for part in parts))


def _launch(kernel, name: str, plan: Plan, problem: Problem, arrays: Arrays, positions, cotangents, outputs):
    tiles = plan[name]
    grid = (problem.chunks(tiles)[0], problem.heads, problem.batch)
    tables = {"positions": positions, "of_digits": jnp.asarray(digit_angles(problem.depth, problem.base))}
    inputs = {**arrays._asdict(), **tables, **cotangents}
    run = partial(kernel, problem=problem, tiles=tiles)
    return backend.launch(run, name, grid, inputs, outputs, tiles, plan)
