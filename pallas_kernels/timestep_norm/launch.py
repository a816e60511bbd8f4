"""Launching the TimestepNorm kernels: what they read and write, in one pass or with the totals of the chunks first."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from pallas_kernels._backends import triton as backend
from pallas_kernels._sums import over_programs
from pallas_kernels._tiles import Plan
from pallas_kernels.timestep_norm.math import VARIANCE_FLOOR
from pallas_kernels.timestep_norm.problem import Arrays, Problem, Tokens
from pallas_kernels.timestep_norm.triton_backward import backward as triton_backward
from pallas_kernels.timestep_norm.triton_forward import forward as triton_forward

FORWARD, BACKWARD = "timestep_norm_forward", "timestep_norm_backward"
F32 = jnp.float32


def forward(plan: Plan, problem: Problem, arrays: Arrays, n, tokens: Tokens, *, statistics: bool):
    """y, and with `statistics` also mean and variance (not floored) at each token [B, G, L], else None."""
    B, G, L = problem.batch, problem.groups, problem.length
    inputs = {
        "x": arrays.x, "weight": arrays.weight, "bias": arrays.bias, "valid": tokens.valid, "runs": tokens.runs,
        "state_n": n, "state_mean": arrays.mean,
        "state_m2": None if arrays.var is None else arrays.var * _prior_weight(n, problem),
    }  # fmt: skip
    per_token = jax.ShapeDtypeStruct((B, G, L), F32) if statistics else None
    outputs = {"y": _like(arrays.x), "token_mean": per_token, "token_var": per_token}
    totals = {"total_n": jnp.int32, "total_mean": F32, "total_m2": F32}
    done = _run(triton_forward, FORWARD, plan, problem, inputs, outputs, totals)
    return done.y, done.token_mean, done.token_var


def backward(
    plan: Plan, problem: Problem, arrays: Arrays, n, tokens: Tokens, token_mean, token_var, dy, dend, last
) -> Arrays:
    """Gradients of everything in `arrays`; `dend` are those of the returned mean and variance, at token `last`."""
    chunks, _ = problem.chunks(plan[BACKWARD])
    B, D, G = problem.batch, problem.features, problem.groups
    inputs = {
        "x": arrays.x, "dy": dy, "weight": arrays.weight, "valid": tokens.valid, "runs": tokens.runs,
        "n": n if tokens.n is None else tokens.n, "token_mean": token_mean, "token_var": token_var,
        "dmean": None if dend is None else dend[0], "dvar": None if dend is None else dend[1],
        "last": None if dend is None else last,
    }  # fmt: skip
    cell, feature = jax.ShapeDtypeStruct((B, chunks, G), F32), jax.ShapeDtypeStruct((B, chunks, D), F32)
    first, empty = (None if n is None else cell), (None if n is None or tokens.valid is None else cell)
    outputs = {
        "dx": _like(arrays.x),
        "dweight": None if arrays.weight is None else feature, "dbias": None if arrays.bias is None else feature,
        "first_a": first, "first_b": first, "empty_mean": empty, "empty_var": empty,
    }  # fmt: skip
    totals = {"total_a": F32, "total_b": F32}
    done = _run(triton_backward, BACKWARD, plan, problem, inputs, outputs, totals)

    dweight, dbias = over_programs(done.dweight, done.dbias)
    if n is None:
        return Arrays(done.dx, dweight, dbias, None, None)
    a, b = done.first_a[:, 0], done.first_b[:, 0]  # A is about the mean at the first token
    dmean = n[:, None].astype(F32) * (a + 2.0 * (arrays.mean - token_mean[:, :, 0]) * b)
    dvar = _prior_weight(n, problem) * b
    if empty is not None:
        dmean, dvar = dmean + jnp.sum(done.empty_mean, axis=1), dvar + jnp.sum(done.empty_var, axis=1)
    return Arrays(done.dx, dweight, dbias, dmean, dvar)


def floored(var: Float32[Array, "..."], problem: Problem) -> Float32[Array, "..."]:
    """The variance that is used: floored under "token_mean"."""
    return jnp.where(var < VARIANCE_FLOOR, VARIANCE_FLOOR, var) if problem.statistics == "token_mean" else var


def _prior_weight(n, problem: Problem):
    """How often the incoming variance counts, [B, 1]."""
    return (jnp.maximum(n, 1) if problem.statistics == "token_mean" else n).astype(F32)[:, None]


def _like(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _run(kernel, name: str, plan: Plan, problem: Problem, inputs, outputs, totals):
    tiles = plan[name]
    chunks, _ = problem.chunks(tiles)
    grid = (problem.groups, problem.batch, chunks)
    none, missing = dict.fromkeys(outputs), dict.fromkeys(totals)
    if chunks > 1:
        cells = {key: jax.ShapeDtypeStruct((problem.batch, chunks, problem.groups), t) for key, t in totals.items()}
        first = partial(kernel, problem=problem, tiles=tiles, totals=True)
        found = backend.launch(first, f"{name}_totals", grid, inputs, {**none, **cells}, tiles, plan)
        missing = {key: getattr(found, key) for key in totals}
    whole = partial(kernel, problem=problem, tiles=tiles, totals=False)
    return backend.launch(whole, name, grid, {**inputs, **missing}, outputs, tiles, plan)
