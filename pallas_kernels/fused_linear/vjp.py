"""fused_linear by kernels, and its gradient; the forward saves nothing but its arguments, without the residual."""

from functools import partial

import jax

import reference
from pallas_kernels._autodiff import explain_forward_mode, first_order_only
from pallas_kernels._call import Call
from pallas_kernels.fused_linear import launch
from pallas_kernels.fused_linear.problem import Arrays, Problem


def fused_linear(plan, x, weight, bias=None, *, x_bias=None, residual=None, activation=None):
    """fused_linear by Triton kernels; arguments as in the public op."""
    batch, length, features = x.shape
    problem = Problem(batch * length, features, weight.shape[0], activation, residual is not None)
    with explain_forward_mode("fused_linear"):
        return _compiled(Call(plan, problem), Arrays(x, weight, bias, x_bias, residual))


def _linear(call: Call[Problem], arrays: Arrays):
    return call.by_platform(_kernel_forward, _reference_forward, arrays)


def _forward(call: Call[Problem], arrays: Arrays):
    y = first_order_only("fused_linear", partial(_linear, call))(arrays)
    return y, arrays._replace(residual=None)


def _backward(call: Call[Problem], arrays: Arrays, dy):
    both = partial(call.by_platform, _kernel_backward, _reference_backward)
    return (first_order_only("fused_linear", both)(arrays, dy),)


_differentiable = jax.custom_vjp(_linear, nondiff_argnums=(0,))
_differentiable.defvjp(_forward, _backward)
_compiled = jax.jit(_differentiable, static_argnums=(0,))  # so that eager calls are traced once


def _kernel_forward(call: Call[Problem], arrays: Arrays):
    return launch.forward(call.plan, call.problem, arrays)


def _kernel_backward(call: Call[Problem], arrays: Arrays, dy) -> Arrays:
    return launch.backward(call.plan, call.problem, arrays, dy)


def _reference_forward(call: Call[Problem], arrays: Arrays):
    return reference.fused_linear(**arrays._asdict(), activation=call.problem.activation)


def _reference_backward(call: Call[Problem], arrays: Arrays, dy) -> Arrays:
    _, pullback = jax.vjp(partial(_reference_forward, call), arrays)
    return pullback(dy)[0]._replace(residual=dy if call.problem.residual else None)
