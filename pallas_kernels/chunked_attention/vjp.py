"""chunked_attention by kernels, and its gradient: what is saved, and what runs in each direction on each platform.

Saved by the forward, under these `checkpoint_name`s for remat policies:

    chunked_attention_o      the result
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
from pallas_kernels.chunked_attention import launch
from pallas_kernels.chunked_attention.problem import Arrays, Problem, Tokens
from reference.segments import run_end_index, run_positions, run_start_index, valid_tokens


class Integers(NamedTuple):
    """The arguments that have no gradient."""

    mask: Bool[Array, "B L"] | None
    segment_ids: Int[Array, "B L"] | None


class Residuals(NamedTuple):
    """What the forward keeps for the backward."""

    arrays: Arrays
    integers: Integers
    o: Array
    lse: Float32[Array, "B H L"]


def chunked_attention(plan, q, k, v, *, chunk_size, mask=None, segment_ids=None, precision=None):
    """chunked_attention by Triton kernels; arguments as in the public op."""
    batch, length, heads, depth = q.shape
    problem = Problem(batch, length, heads, depth, v.shape[3], chunk_size, precision)
    with explain_forward_mode("chunked_attention"):
        return _compiled(Call(plan, problem), Arrays(q, k, v), Integers(mask, segment_ids))


def _attention(call: Call[Problem], arrays: Arrays, integers: Integers) -> Array:
    return call.by_platform(_kernel_forward, _reference_forward, arrays, integers)[0]


def _forward(call: Call[Problem], arrays: Arrays, integers: Integers):
    kernel, other = partial(_kernel_forward, save=True), partial(_reference_forward, save=True)
    o, lse = first_order_only("chunked_attention", partial(call.by_platform, kernel, other))(arrays, integers)
    o, lse = checkpoint_name(o, "chunked_attention_o"), checkpoint_name(lse, "chunked_attention_lse")
    return o, Residuals(arrays, integers, o, lse)


def _backward(call: Call[Problem], residuals: Residuals, do):
    both = partial(call.by_platform, _kernel_backward, _reference_backward)
    return first_order_only("chunked_attention", both)(residuals, do), None


_differentiable = jax.custom_vjp(_attention, nondiff_argnums=(0,))
_differentiable.defvjp(_forward, _backward)
_compiled = jax.jit(_differentiable, static_argnums=(0,))  # so that eager calls are traced once


def _kernel_forward(call: Call[Problem], arrays: Arrays, integers: Integers, *, save: bool = False):
    return launch.forward(call.plan, call.problem, arrays, _tokens(call.problem, integers), save=save)


def _kernel_backward(call: Call[Problem], residuals: Residuals, do) -> Arrays:
    arrays, integers, o, lse = residuals
    return launch.backward(call.plan, call.problem, arrays, _tokens(call.problem, integers), o, lse, do)


def _tokens(problem: Problem, integers: Integers) -> Tokens:
    valid = valid_tokens(*integers)
    valid = None if valid is None else valid.astype(jnp.int32)
    if integers.segment_ids is None:
        return Tokens(valid)
    position = run_positions(integers.segment_ids)
    first = run_start_index(integers.segment_ids) + position // problem.chunk_size * problem.chunk_size
    return Tokens(valid, first, jnp.minimum(first + problem.chunk_size, run_end_index(integers.segment_ids)))


def _reference(call: Call[Problem], arrays: Arrays, integers: Integers) -> Array:
    problem = call.problem
    return reference.chunked_attention(
        *arrays, chunk_size=problem.chunk_size, mask=integers.mask, segment_ids=integers.segment_ids,
        precision=problem.precision,
    )  # fmt: skip


def _reference_forward(call: Call[Problem], arrays: Arrays, integers: Integers, *, save: bool = False):
    problem = call.problem  # the reference's backward starts afresh: what it is not to read is not a number
    unused = jnp.full((problem.batch, problem.heads, problem.length), jnp.nan, jnp.float32) if save else None
    return _reference(call, arrays, integers), unused


def _reference_backward(call: Call[Problem], residuals: Residuals, do) -> Arrays:
    _, pullback = jax.vjp(lambda arrays: _reference(call, arrays, residuals.integers), residuals.arrays)
    return pullback(do)[0]
