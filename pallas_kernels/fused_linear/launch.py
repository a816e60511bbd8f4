"""Launching the kernels of fused_linear: what they read and write."""

from functools import partial

import jax
import jax.numpy as jnp

from pallas_kernels._backends import triton as backend
from pallas_kernels._tiles import Plan
from pallas_kernels.fused_linear import triton
from pallas_kernels.fused_linear.problem import Arrays, Problem

FORWARD, DX, DW = (f"fused_linear_{kernel}" for kernel in ("forward", "dx", "dw"))

S = jax.ShapeDtypeStruct


def forward(plan: Plan, problem: Problem, arrays: Arrays) -> jax.Array:
    """y."""
    x, weight = arrays.x, arrays.weight.astype(arrays.x.dtype)
    inputs = {**arrays._asdict(), "x": _matrix(x), "weight": weight, "residual": _matrix(arrays.residual)}
    outputs = {"y": S((problem.tokens, problem.outputs), x.dtype)}
    done = _launch(triton.forward, FORWARD, plan, problem, inputs, outputs)
    return done.y.reshape(*x.shape[:2], problem.outputs)


def backward(plan: Plan, problem: Problem, arrays: Arrays, dy) -> Arrays:
    """The gradients; the residual is not looked at."""
    x, weight, given = arrays.x, arrays.weight, _matrix(dy)
    narrow = {"dy": given, "x": _matrix(x), "x_bias": arrays.x_bias}
    blocks = -(-problem.tokens // plan[DX].block_m)
    outputs = {
        "dx": S(narrow["x"].shape, x.dtype),
        "dx_bias": None if arrays.x_bias is None else S((blocks, problem.features), jnp.float32),
    }
    inputs = narrow | {"weight": weight.astype(x.dtype)}
    of_x = _launch(triton.dx, DX, plan, problem, inputs, outputs)

    splits, _ = problem.splits(plan[DW])
    outputs = {
        "dw": S((splits, *weight.shape), jnp.float32 if splits > 1 else weight.dtype),
        "dbias": None if arrays.bias is None else S((splits, problem.outputs), jnp.float32),
    }
    of_weight = _launch(triton.dw, DW, plan, problem, narrow, outputs)
    return Arrays(
        of_x.dx.reshape(x.shape),
        (of_weight.dw[0] if splits == 1 else jnp.sum(of_weight.dw, axis=0)).astype(weight.dtype),
        None if of_weight.dbias is None else jnp.sum(of_weight.dbias, axis=0),
        None if of_x.dx_bias is None else jnp.sum(of_x.dx_bias, axis=0),
        dy if problem.residual else None,
    )


def _matrix(array):
    """[T, F] of [B, L, F]; None for None."""
    return None if array is None else array.reshape(-1, array.shape[-1])


def _launch(kernel, name: str, plan: Plan, problem: Problem, inputs, outputs):
    tiles = plan[name]
    rows = problem.outputs if name == DW else problem.tokens
    columns = problem.outputs if name == FORWARD else problem.features
    grid = (-(-columns // tiles.block_n), -(-rows // tiles.block_m), problem.splits(tiles)[0] if name == DW else 1)
    run = partial(kernel, problem=problem, tiles=tiles, dot=backend.matrix_product(plan, None))
    return backend.launch(run, name, grid, inputs, outputs, tiles, plan)
