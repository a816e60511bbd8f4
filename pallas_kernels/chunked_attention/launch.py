"""Launching the attention kernels: what they read and write."""

from functools import partial

import jax
import jax.numpy as jnp

from pallas_kernels._backends import triton as backend
from pallas_kernels._tiles import Plan
from pallas_kernels.chunked_attention import triton_backward
from pallas_kernels.chunked_attention.problem import Arrays, Problem, Tokens
from pallas_kernels.chunked_attention.triton_forward import forward as triton_forward

FORWARD = "chunked_attention_forward"
DQ, DK, DV = (f"chunked_attention_{gradient}" for gradient in ("dq", "dk", "dv"))


def forward(plan: Plan, problem: Problem, arrays: Arrays, tokens: Tokens, *, save: bool):
    """o, and with `save` the log-sum-exp [B, H, L] of each query's scores."""
    q, v = arrays.q, arrays.v
    lse = jax.ShapeDtypeStruct((problem.batch, problem.heads, problem.length), jnp.float32)
    outputs = {"o": jax.ShapeDtypeStruct((*q.shape[:3], v.shape[3]), q.dtype), "lse": lse if save else None}
    done = _launch(triton_forward, FORWARD, plan, problem, {**arrays._asdict(), **tokens._asdict()}, outputs)
    return done.o, done.lse


def backward(plan: Plan, problem: Problem, arrays: Arrays, tokens: Tokens, o, lse, do) -> Arrays:
    """dq, dk, dv."""
    delta = jnp.sum(do.astype(jnp.float32) * o.astype(jnp.float32), axis=-1).transpose(0, 2, 1)
    inputs = {**arrays._asdict(), "do": do, "lse": lse, "delta": delta, **tokens._asdict()}
    kernels = (DQ, triton_backward.dq, arrays.q), (DK, triton_backward.dk, arrays.k), (DV, triton_backward.dv, arrays.v)
    found = []
    for name, kernel, like in kernels:
        output = name.removeprefix("chunked_attention_")
        outputs, options = {output: jax.ShapeDtypeStruct(like.shape, like.dtype)}, {}
        if name != DV:
            outputs["sum"] = jax.ShapeDtypeStruct(like.shape, jnp.float32)  # what the kernel works with
            options["barrier"] = backend.barrier(plan)
        found.append(getattr(_launch(kernel, name, plan, problem, inputs, outputs, **options), output))
    return Arrays(*found)


def _launch(kernel, name: str, plan: Plan, problem: Problem, inputs, outputs, **options):
    tiles = plan[name]
    slices = -(-problem.width // tiles.block_v) if name in (FORWARD, DV) else 1
    block = tiles.block_q if name in (FORWARD, DQ) else tiles.block_k
    grid = (slices, -(-problem.length // block), problem.batch * problem.heads)
    dot = backend.matrix_product(plan, problem.precision)
    run = partial(kernel, problem=problem, tiles=tiles, dot=dot, **options)
    return backend.launch(run, name, grid, inputs, outputs, tiles, plan)
