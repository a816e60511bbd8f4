"""chunked_attention by kernels, and its gradient: what is saved, and what runs in each direction on each platform.

Saved by the forward, under these `checkpoint_name`s for remat policies:

    chunked_attention_o      the result, or with a gate what is in front of it
    chunked_attention_lse    [B, H, L] float32, the log-sum-exp of each query's scores
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float32, Int

import reference
from pallas_kernels._autodiff import explain_forward_mode, first_order_only
from pallas_kernels._call import Call
from pallas_kernels._dispatch import fall_back
from pallas_kernels.chunked_attention import launch
from pallas_kernels.chunked_attention.problem import Arrays, Problem, Tokens
from reference.segments import cached_span, run_chunks, valid_tokens


class Integers(NamedTuple):
    """The arguments that have no gradient."""

    mask: Bool[Array, "B L"] | None
    segment_ids: Int[Array, "B L"] | None
    cached_length: Int[Array, " B"] | None


class Residuals(NamedTuple):
    """What the forward keeps for the backward."""

    arrays: Arrays
    integers: Integers
    o: Array | None  # None with a cache: the backward is then the reference's
    lse: Float32[Array, "B H L"] | None


def chunked_attention(
    plan, q, k, v, *, chunk_size, mask=None, segment_ids=None, cached_k=None, cached_v=None, cached_length=None,
    v_activation=None, v_bias=None, gate=None, gate_bias=None, precision=None, **refused,
):  # fmt: skip
    """chunked_attention by Triton kernels; arguments as in the public op, `refused` those that `tiles.refuse` does."""
    batch, length, heads, depth = q.shape
    problem = Problem(batch, length, heads, depth, v.shape[3], chunk_size, v_activation is not None, precision)
    with explain_forward_mode("chunked_attention"):
        arrays = Arrays(q, k, v, cached_k, cached_v, gate, v_bias, gate_bias)
        integers = Integers(mask, segment_ids, cached_length)
        return _compiled(Call(plan, problem), arrays, integers)


def _attention(call: Call[Problem], arrays: Arrays, integers: Integers) -> Array:
    return call.by_platform(_kernel_forward, _reference_forward, arrays, integers)[0]


def _forward(call: Call[Problem], arrays: Arrays, integers: Integers):
    save = integers.cached_length is None
    kernel, other = partial(_kernel_forward, save=save), partial(_reference_forward, save=save)
    o, before, lse = first_order_only("chunked_attention", partial(call.by_platform, kernel, other))(arrays, integers)
    if not save:
        fall_back("chunked_attention", "gradients of attention that continues a cache are left to XLA")
        return o, Residuals(arrays, integers, None, None)
    lse = checkpoint_name(lse, "chunked_attention_lse")
    if before is None:
        before = o = checkpoint_name(o, "chunked_attention_o")
    else:
        before = checkpoint_name(before, "chunked_attention_o")
    return o, Residuals(arrays, integers, before, lse)


def _backward(call: Call[Problem], residuals: Residuals, do):
    kernel = _kernel_backward if residuals.integers.cached_length is None else _reference_backward
    both = partial(call.by_platform, kernel, _reference_backward)
    return first_order_only("chunked_attention", both)(residuals, do), None


_differentiable = jax.custom_vjp(_attention, nondiff_argnums=(0,))
_differentiable.defvjp(_forward, _backward)
_compiled = jax.jit(_differentiable, static_argnums=(0,))  # so that eager calls are traced once


def _kernel_forward(call: Call[Problem], arrays: Arrays, integers: Integers, *, save: bool = False):
    tokens = _tokens(call.problem, arrays, integers)
    return launch.forward(call.plan, call.problem, arrays, tokens, save=save)


def _kernel_backward(call: Call[Problem], residuals: Residuals, do) -> Arrays:
    arrays, integers, o, lse = residuals
    return launch.backward(call.plan, call.problem, arrays, _tokens(call.problem, arrays, integers), o, lse, do)


def _tokens(problem: Problem, arrays: Arrays, integers: Integers) -> Tokens:
    mask, segment_ids, cached_length = integers
    valid = valid_tokens(mask, segment_ids)
    valid = None if valid is None else valid.astype(jnp.int32)
    reach = None
    if cached_length is not None:
        assert arrays.cached_k is not None
        slots = arrays.cached_k.shape[1]
        cached_length, reach = cached_span(cached_length, slots, problem.length, problem.chunk_size, segment_ids)
    elif segment_ids is None:
        return Tokens(valid)
    first, end = run_chunks((problem.batch, problem.length), problem.chunk_size, segment_ids, cached_length)
    return Tokens(valid, first, end, cached_length, reach)


def _reference(call: Call[Problem], arrays: Arrays, integers: Integers) -> Array:
    problem = call.problem
    return reference.chunked_attention(
        **arrays._asdict(), **integers._asdict(), chunk_size=problem.chunk_size, precision=problem.precision,
        v_activation="silu" if problem.activated else None,
    )  # fmt: skip


def _reference_forward(call: Call[Problem], arrays: Arrays, integers: Integers, *, save: bool = False):
    problem = call.problem  # the reference's backward starts afresh: what it is not to read is not a number
    o = _reference(call, arrays, integers)
    before = jnp.full_like(o, jnp.nan) if save and arrays.gate is not None else None
    return o, before, jnp.full((problem.batch, problem.heads, problem.length), jnp.nan, jnp.float32) if save else None


def _reference_backward(call: Call[Problem], residuals: Residuals, do) -> Arrays:
    _, pullback = jax.vjp(lambda arrays: _reference(call, arrays, residuals.integers), residuals.arrays)
    return pullback(do)[0]
