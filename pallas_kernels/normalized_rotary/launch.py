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
    sums = (problem.batch, chunks, 4 if arrays.bias is None else 5, problem.heads, problem.depth)
    outputs = {
        "dz": jax.ShapeDtypeStruct(arrays.z.shape, arrays.z.dtype), "sums": jax.ShapeDtypeStruct(sums, jnp.float32),
    }  # fmt: skip
    cotangents = {"dq": dq, "dk": dk}
    done = _launch(triton.backward, BACKWARD, plan, problem, arrays, positions, cotangents, outputs)
    total = jnp.sum(done.sums, axis=(0, 1))
    return Arrays(done.dz, total[:2], total[2:4], None if arrays.bias is None else total[4])


def _launch(kernel, name: str, plan: Plan, problem: Problem, arrays: Arrays, positions, cotangents, outputs):
    tiles = plan[name]
    grid = (problem.chunks(tiles)[0], problem.heads, problem.batch)
    tables = {"positions": positions, "of_digits": jnp.asarray(digit_angles(problem.depth, problem.base))}
    inputs = {**arrays._asdict(), **tables, **cotangents}
    run = partial(kernel, problem=problem, tiles=tiles)
    return backend.launch(run, name, grid, inputs, outputs, tiles, plan)
