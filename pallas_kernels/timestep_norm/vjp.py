"""timestep_norm by kernels, and its gradient: what is saved, and what runs in each direction on each platform.

Saved by the forward, under these `checkpoint_name`s for remat policies:

    timestep_norm_mean, timestep_norm_var    [B, G, L] float32, statistics at each token (the variance not floored)
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float32, Int, Int32

import reference
from pallas_kernels._autodiff import explain_forward_mode, first_order_only
from pallas_kernels._call import Call
from pallas_kernels.timestep_norm import launch
from pallas_kernels.timestep_norm.problem import Arrays, Problem, Tokens
from reference.segments import last_valid_index, run_start_index, state_resets, valid_tokens
from reference.timestep_norm import fresh_state


class Integers(NamedTuple):
    """The arguments that have none; n is the incoming state's, None for the fresh one."""

    n: Int32[Array, " B"] | None
    mask: Bool[Array, "B L"] | None
    segment_ids: Int[Array, "B L"] | None


class Residuals(NamedTuple):
    """What the forward keeps for the backward."""

    arrays: Arrays
    integers: Integers
    token_mean: Float32[Array, "B G L"]
    token_var: Float32[Array, "B G L"]


def timestep_norm(
    plan, x, weight=None, bias=None, *, num_groups, eps=1e-5, state=None, mask=None, segment_ids=None,
    statistics="token_mean", return_state=False,
):  # fmt: skip
    """timestep_norm by Triton kernels; arguments as in the public op."""
    batch, length, features = x.shape
    call = Call(plan, Problem(batch, length, features, num_groups, float(eps), statistics), return_state)
    count, mean, var = (None, None, None) if state is None else state
    integers = Integers(count, mask, segment_ids)
    with explain_forward_mode("timestep_norm"):
        y, end = _compiled(call, Arrays(x, weight, bias, mean, var), integers)
    return (y, (_end_count(call.problem, integers), *end)) if return_state else y


def _norm(call: Call[Problem], arrays: Arrays, integers: Integers) -> tuple[Array, Any]:
    """y, and mean and variance of the returned state (None where it is not asked for)."""
    return call.by_platform(_kernel_forward, _reference_forward, arrays, integers)[:2]


def _forward(call: Call[Problem], arrays: Arrays, integers: Integers):
    kernel, other = partial(_kernel_forward, save=True), partial(_reference_forward, save=True)
    y, end, mean, var = first_order_only("timestep_norm", partial(call.by_platform, kernel, other))(arrays, integers)
    mean, var = checkpoint_name(mean, "timestep_norm_mean"), checkpoint_name(var, "timestep_norm_var")
    return (y, end), Residuals(arrays, integers, mean, var)


def _backward(call: Call[Problem], residuals: Residuals, cotangents):
    dy, dend = cotangents
    run = first_order_only("timestep_norm", partial(call.by_platform, _kernel_backward, _reference_backward))
    return run(residuals, dy, dend), None


_differentiable = jax.custom_vjp(_norm, nondiff_argnums=(0,))
_differentiable.defvjp(_forward, _backward)
_compiled = jax.jit(_differentiable, static_argnums=(0,))  # so that eager calls are traced once


def _kernel_forward(call: Call[Problem], arrays: Arrays, integers: Integers, *, save: bool = False):
    problem, tokens = call.problem, _tokens(integers)
    y, mean, var = launch.forward(call.plan, problem, arrays, integers.n, tokens, statistics=save or call.return_state)
    end = None
    if call.return_state:
        last = _last(problem, integers)
        end = tuple(jnp.take_along_axis(part, last[:, None, None], axis=2)[..., 0] for part in (mean, var))
        end = end[0], launch.floored(end[1], problem)
        if tokens.valid is not None:  # a row without a token returns what came in
            _, mean0, var0 = fresh_state(problem.batch, problem.groups)
            old = (mean0 if arrays.mean is None else arrays.mean, var0 if arrays.var is None else arrays.var)
            end = tuple(jnp.where((last < 0)[:, None], *pair) for pair in zip(old, end, strict=True))
    return y, end, mean, var


def _kernel_backward(call: Call[Problem], residuals: Residuals, dy, dend) -> Arrays:
    arrays, integers, token_mean, token_var = residuals
    tokens, last = _tokens(integers), _last(call.problem, integers)
    gradients = launch.backward(
        call.plan, call.problem, arrays, integers.n, tokens, token_mean, token_var, dy, dend, last
    )
    dmean, dvar = gradients.mean, gradients.var
    if dend is None or tokens.valid is None or dmean is None or dvar is None:
        return gradients
    passed = [jnp.where((last < 0)[:, None], end, 0.0) for end in dend]  # where what came in is returned
    return gradients._replace(mean=dmean + passed[0], var=dvar + passed[1])


def _reference(call: Call[Problem], arrays: Arrays, integers: Integers):
    x, weight, bias, mean, var = arrays
    state = None if integers.n is None else (integers.n, mean, var)
    y, (_, *end) = reference.timestep_norm(
        x, weight, bias, num_groups=call.problem.groups, eps=call.problem.eps, state=state,
        mask=integers.mask, segment_ids=integers.segment_ids, statistics=call.problem.statistics, return_state=True,
    )  # fmt: skip
    return y, (tuple(end) if call.return_state else None)


def _reference_forward(call: Call[Problem], arrays: Arrays, integers: Integers, *, save: bool = False):
    y, end = _reference(call, arrays, integers)
    if not (save or call.return_state):
        return y, end, None, None
    problem = call.problem  # the reference's backward starts afresh: what it is not to read is not a number
    unused = jnp.full((problem.batch, problem.groups, problem.length), jnp.nan, jnp.float32)
    return y, end, unused, unused


def _reference_backward(call: Call[Problem], residuals: Residuals, dy, dend) -> Arrays:
    _, pullback = jax.vjp(lambda arrays: _reference(call, arrays, residuals.integers), residuals.arrays)
    return pullback((dy, dend))[0]


def _tokens(integers: Integers) -> Tokens:
    valid = valid_tokens(integers.mask, integers.segment_ids)
    if valid is None:
        return Tokens()
    counted = valid.astype(jnp.int32)
    count = jnp.cumsum(counted, axis=1)
    with_state = count if integers.n is None else integers.n[:, None] + count
    if integers.segment_ids is None:
        return Tokens(counted, with_state)
    start = run_start_index(integers.segment_ids)
    before = jnp.take_along_axis(count - counted, start, axis=1)
    runs = jnp.cumsum(state_resets(integers.segment_ids).astype(jnp.int32), axis=1)
    return Tokens(counted, jnp.where(runs == 0, with_state, count - before), runs)


def _last(problem: Problem, integers: Integers) -> Int32[Array, " B"]:
    """Token that the returned state belongs to, -1 in a row without a valid one."""
    valid = valid_tokens(integers.mask, integers.segment_ids)
    return jnp.full((problem.batch,), problem.length - 1, jnp.int32) if valid is None else last_valid_index(valid)


def _end_count(problem: Problem, integers: Integers) -> Int32[Array, " B"]:
    before = jnp.zeros((problem.batch,), jnp.int32) if integers.n is None else integers.n
    count, last = _tokens(integers).n, _last(problem, integers)
    if count is None:
        return before + problem.length
    return jnp.where(last < 0, before, jnp.take_along_axis(count, last[:, None], axis=1)[:, 0])
