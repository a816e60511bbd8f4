"""feature_norm by kernels, and its gradient; the forward saves nothing but its arguments."""

from functools import partial

import jax

import reference
from pallas_kernels._autodiff import explain_forward_mode, first_order_only
from pallas_kernels._call import Call
from pallas_kernels.feature_norm import launch
from pallas_kernels.feature_norm.problem import Arrays, Problem


def feature_norm(plan, x, weight=None, bias=None, *, centred: bool, minus_one: bool = False, eps=1e-5):
    """feature_norm by Triton kernels; arguments as in the public op."""
    batch, length, features = x.shape
    problem = Problem(batch * length, features, centred, minus_one, float(eps))
    with explain_forward_mode("feature_norm"):
        return _compiled(Call(plan, problem), Arrays(x, weight, bias))


def _norm(call: Call[Problem], arrays: Arrays):
    return call.by_platform(_kernel_forward, _reference_forward, arrays)


def _forward(call: Call[Problem], arrays: Arrays):
    return first_order_only("feature_norm", partial(_norm, call))(arrays), arrays


def _backward(call: Call[Problem], arrays: Arrays, dy):
    both = partial(call.by_platform, _kernel_backward, _reference_backward)
    return (first_order_only("feature_norm", both)(arrays, dy),)


_differentiable = jax.custom_vjp(_norm, nondiff_argnums=(0,))
_differentiable.defvjp(_forward, _backward)
_compiled = jax.jit(_differentiable, static_argnums=(0,))  # so that eager calls are traced once


def _kernel_forward(call: Call[Problem], arrays: Arrays):
    return launch.forward(call.plan, call.problem, arrays)


def _kernel_backward(call: Call[Problem], arrays: Arrays, dy) -> Arrays:
    return launch.backward(call.plan, call.problem, arrays, dy)


def _reference_forward(call: Call[Problem], arrays: Arrays):
    problem = call.problem
    return reference.feature_norm(*arrays, centred=problem.centred, minus_one=problem.minus_one, eps=problem.eps)


def _reference_backward(call: Call[Problem], arrays: Arrays, dy) -> Arrays:
    _, pullback = jax.vjp(partial(_reference_forward, call), arrays)
    return pullback(dy)[0]
