"""Launching the attention kernels: what they read and write."""

from functools import partial

import jax
import jax.numpy as jnp

from pallas_kernels._backends import triton as backend
from pallas_kernels._tiles import Plan
from pallas_kernels.chunked_attention import triton_backward
from pallas_kernels.chunked_attention.problem import Arrays, Problem, Tokens
from pallas_kernels.chunked_attention.triton_forward import forward as triton_forward
from pallas_kernels.chunked_attention.triton_gate import gate as triton_gate
from reference.gating import activated

FORWARD, GATE = "chunked_attention_forward", "chunked_attention_gate"
DQ, DK, DV = (f"chunked_attention_{gradient}" for gradient in ("dq", "dk", "dv"))
# Values are made of v once for every block of queries that attends them: beyond chunks of so many tokens a pass over
# memory is the cheaper way.
LONGEST_TO_ACTIVATE = 512

S = jax.ShapeDtypeStruct


def forward(plan: Plan, problem: Problem, arrays: Arrays, tokens: Tokens, *, save: bool):
    """o, and with `save` o in front of the gate (None without one) and the log-sum-exp [B, H, L] of the scores."""
    activate = problem.activated and problem.chunk_size <= LONGEST_TO_ACTIVATE
    if problem.activated and not activate:
        arrays = arrays._replace(v=activated(arrays.v, arrays.v_bias))
    o = S(arrays.v.shape, arrays.q.dtype)
    outputs = {
        "o": o,
        "before": o if arrays.gate is not None and save else None,
        "lse": S((problem.batch, problem.heads, problem.length), jnp.float32) if save else None,
    }
    kernel = partial(triton_forward, dot=backend.matrix_product(plan, problem.precision), activate=activate)
    done = _launch(kernel, FORWARD, plan, problem, {**arrays._asdict(), **tokens._asdict()}, outputs)
    return done.o, done.before, done.lse


def backward(plan: Plan, problem: Problem, arrays: Arrays, tokens: Tokens, o, lse, do) -> Arrays:
    """The gradients; `o` is that in front of the gate."""
    raw, dgate, dgate_bias, dv_bias = None, None, None, None
    if arrays.gate is None:
        delta = jnp.sum(do.astype(jnp.float32) * o.astype(jnp.float32), axis=-1).transpose(0, 2, 1)
    else:
        do, delta, dgate, dgate_bias = _gate(plan, problem, arrays, o, do)
    if problem.activated:
        raw, _ = jax.lax.optimization_barrier((arrays.v, do))  # values are made now, not kept from the forward on
        arrays = arrays._replace(v=activated(raw, arrays.v_bias))
    inputs = {**arrays._asdict(), "do": do, "lse": lse, "delta": delta, "raw": raw, **tokens._asdict()}
    of_scores = {name: inputs[name] for name in ("q", "k", "v", "do", "lse", "delta", *Tokens._fields)}
    dot, barrier = backend.matrix_product(plan, problem.precision), backend.barrier(plan)
    dq, dk = (
        getattr(
            _launch(
                partial(kernel, dot=dot, barrier=barrier), name, plan, problem, of_scores,
                {output: S(like.shape, like.dtype), "sum": S(like.shape, jnp.float32)},  # a sum that it works with
            ),
            output,
        )
        for name, kernel, output, like in (
            (DQ, triton_backward.dq, "dq", arrays.q),
            (DK, triton_backward.dk, "dk", arrays.k),
        )
    )  # fmt: skip
    outputs = {"dv": S(arrays.v.shape, arrays.v.dtype), "dv_bias": _sums(plan[DV].block_k, problem, arrays.v_bias)}
    of_values = {name: inputs[name] for name in ("q", "k", "v_bias", "do", "lse", "raw", *Tokens._fields)}
    done = _launch(partial(triton_backward.dv, dot=dot), DV, plan, problem, of_values, outputs)
    dv_bias = None if done.dv_bias is None else jnp.sum(done.dv_bias, axis=(0, 1))
    return Arrays(dq, dk, done.dv, gate=dgate, v_bias=dv_bias, gate_bias=dgate_bias)


def _gate(plan: Plan, problem: Problem, arrays: Arrays, o, dg):
    """do and delta of the attention, the gradients of gate and gate_bias."""
    outputs = {
        "do": S(o.shape, o.dtype),
        "dgate": S(o.shape, o.dtype),
        "delta": S((problem.batch, problem.heads, problem.length), jnp.float32),
        "dgate_bias": _sums(plan[GATE].block_q, problem, arrays.gate_bias),
    }
    inputs = {"before": o, "dg": dg, "gate": arrays.gate, "gate_bias": arrays.gate_bias}
    done = _launch(triton_gate, GATE, plan, problem, inputs, outputs)
    return done.do, done.delta, done.dgate, None if done.dgate_bias is None else jnp.sum(done.dgate_bias, axis=(0, 1))


def _sums(block: int, problem: Problem, bias):
    """What each block of tokens adds to the gradient of a bias."""
    if bias is None:
        return None
    return S((problem.batch, -(-problem.length // block), problem.heads, problem.width), jnp.float32)


def _launch(kernel, name: str, plan: Plan, problem: Problem, inputs, outputs):
    tiles = plan[name]
    slices = -(-problem.width // tiles.block_v) if name in (FORWARD, DV) else 1
    block = tiles.block_q if name in (FORWARD, GATE, DQ) else tiles.block_k
    grid = (slices, -(-problem.length // block), problem.batch * problem.heads)
    run = partial(kernel, problem=problem, tiles=tiles)
    return backend.launch(run, name, grid, inputs, outputs, tiles, plan)
