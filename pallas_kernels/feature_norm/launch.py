"""Launching the kernels of feature_norm: what they read and write."""

from functools import partial

import jax
import jax.numpy as jnp

from pallas_kernels._backends import triton as backend
from pallas_kernels._sums import over_programs
from pallas_kernels._tiles import Plan
from pallas_kernels.feature_norm import triton
from pallas_kernels.feature_norm.problem import Arrays, Problem

FORWARD, BACKWARD = "feature_norm_forward", "feature_norm_backward"


def forward(plan: Plan, problem: Problem, arrays: Arrays) -> jax.Array:
    """y."""
    outputs = {"y": jax.ShapeDtypeStruct((problem.tokens, problem.features), arrays.x.dtype)}
    return _launch(triton.forward, FORWARD, plan, problem, arrays, {}, outputs).y.reshape(arrays.x.shape)


def backward(plan: Plan, problem: Problem, arrays: Arrays, dy) -> Arrays:
    """dx and, where there are such parameters, dweight and dbias."""
    chunks, _ = problem.chunks(plan[BACKWARD])
    sums = jax.ShapeDtypeStruct((chunks, problem.features), jnp.float32)
    outputs = {
        "dx": jax.ShapeDtypeStruct((problem.tokens, problem.features), arrays.x.dtype),
        "dweight": None if arrays.weight is None else sums,
        "dbias": None if arrays.bias is None else sums,
    }
    cotangent = {"dy": dy.reshape(problem.tokens, problem.features)}
    done = _launch(triton.backward, BACKWARD, plan, problem, arrays, cotangent, outputs)
    dweight, dbias = over_programs(done.dweight, done.dbias, axes=(0,))
    return Arrays(done.dx.reshape(arrays.x.shape), dweight, dbias)


def _launch(kernel, name: str, plan: Plan, problem: Problem, arrays: Arrays, cotangent, outputs):
    tiles = plan[name]
    tokens = arrays._replace(x=arrays.x.reshape(problem.tokens, problem.features))
    run = partial(kernel, problem=problem, tiles=tiles)
    grid = (problem.chunks(tiles)[0],)
    return backend.launch(run, name, grid, {**tokens._asdict(), **cotangent}, outputs, tiles, plan)
