"""normalized_rotary by kernels, and its gradient; the forward saves nothing but its arguments."""

from functools import partial

import jax
import jax.numpy as jnp

import reference
from pallas_kernels._autodiff import explain_forward_mode, first_order_only
from pallas_kernels._call import Call
from pallas_kernels.normalized_rotary import launch
from pallas_kernels.normalized_rotary.problem import Arrays, Problem


def normalized_rotary(
    plan, z, scale, shift, bias=None, *, positions, eps=1e-5, base=10000.0, interleaved=False,
    scale_offset=0.0, scale_factor=1.0,
):  # fmt: skip
    """normalized_rotary by Triton kernels; arguments as in the public op."""
    batch, length, heads, depth = z.shape
    problem = Problem(
        batch, length, heads, depth, float(eps), float(base), interleaved, float(scale_offset), float(scale_factor)
    )
    with explain_forward_mode("normalized_rotary"):
        return _compiled(Call(plan, problem), Arrays(z, scale, shift, bias), _rows(positions))


def _rows(positions):
    """[1 or B, L] int32."""
    return (positions[None] if positions.ndim == 1 else positions).astype(jnp.int32)


def _rotary(call: Call[Problem], arrays: Arrays, positions):
    return call.by_platform(_kernel_forward, _reference_forward, arrays, positions)


def _forward(call: Call[Problem], arrays: Arrays, positions):
    run = first_order_only("normalized_rotary", partial(_rotary, call))
    return run(arrays, positions), (arrays, positions)


def _backward(call: Call[Problem], residuals, cotangents):
    both = partial(call.by_platform, _kernel_backward, _reference_backward)
    return first_order_only("normalized_rotary", both)(*residuals, *cotangents), None


_differentiable = jax.custom_vjp(_rotary, nondiff_argnums=(0,))
_differentiable.defvjp(_forward, _backward)
_compiled = jax.jit(_differentiable, static_argnums=(0,))  # so that eager calls are traced once


def _kernel_forward(call: Call[Problem], arrays: Arrays, positions):
    return launch.forward(call.plan, call.problem, arrays, positions)


def _kernel_backward(call: Call[Problem], arrays: Arrays, positions, dq, dk) -> Arrays:
    return launch.backward(call.plan, call.problem, arrays, positions, dq, dk)


def _reference_forward(call: Call[Problem], arrays: Arrays, positions):
    problem = call.problem
    return reference.normalized_rotary(
        *arrays, positions=positions, eps=problem.eps, base=problem.base, interleaved=problem.interleaved,
        scale_offset=problem.scale_offset, scale_factor=problem.scale_factor,
    )  # fmt: skip


def _reference_backward(call: Call[Problem], arrays: Arrays, positions, dq, dk) -> Arrays:
    _, pullback = jax.vjp(lambda arrays: _reference_forward(call, arrays, positions), arrays)
    return pullback((dq, dk))[0]
