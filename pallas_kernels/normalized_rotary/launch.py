"""Launching the kernels of normalized_rotary: what they read and write."""

from functools import partial

import jax
import jax.numpy as jnp

from pallas_kernels._backends import triton as backend
from pallas_kernels._sums import over_programs
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
    sums = [
        None if array is None else jax.ShapeDtypeStruct((problem.batch, chunks, *array.shape), jnp.float32)
        for array in (arrays.scale, arrays.shift, arrays.bias)
    ]
    dz = jax.ShapeDtypeStruct(arrays.z.shape, arrays.z.dtype)
    outputs = dict(zip(("dz", "dscale", "dshift", "dbias"), (dz, *sums), strict=True))
    cotangents = {"dq": dq, "dk": dk}
    done = _launch(triton.backward, BACKWARD, plan, problem, arrays, positions, cotangents, outputs)
    return Arrays(done.dz, *over_programs(done.dscale, done.dshift), *over_programs(done.dbias))


def _launch(kernel, name: str, plan: Plan, problem: Problem, arrays: Arrays, positions, cotangents, outputs):
    tiles = plan[name]
    grid = (problem.chunks(tiles)[0], problem.heads, problem.batch)
    tables = {"positions": positions, "of_digits": jnp.asarray(digit_angles(problem.depth, problem.base))}
    inputs = {**arrays._asdict(), **tables, **cotangents}
    run = partial(kernel, problem=problem, tiles=tiles)
    return backend.launch(run, name, grid, inputs, outputs, tiles, plan)
