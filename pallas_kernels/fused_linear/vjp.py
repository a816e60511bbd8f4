"""fused_linear by kernels, and its gradient; the forward saves nothing but its arguments, without the residual.

`rounded` is the weight in the dtype of x: what is multiplied with, where gradients are those of the weight. Which
gradients are asked for is known as the forward is differentiated: no kernel runs for the others alone.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

import reference
from pallas_kernels._autodiff import explain_forward_mode, first_order_only
from pallas_kernels._call import Call
from pallas_kernels.fused_linear import launch
from pallas_kernels.fused_linear.problem import Arrays, Asked, Problem
from reference.fused_linear import layers_of


def fused_linear(
    plan, x, weight, bias=None, *, x_bias=None, gate=None, gate_bias=None, residual=None, activation=None, rounded=None
):
    """fused_linear by Triton kernels; arguments as in the public op."""
    batch, length, features = x.shape
    layers = layers_of(weight, bias, residual)
    outputs, added = zip(*((layer.weight.shape[0], layer.residual is not None) for layer in layers), strict=True)
    problem = Problem(batch * length, features, outputs, added, activation)
    copies = rounded if isinstance(rounded, tuple) else (rounded,) * len(layers)
    with explain_forward_mode("fused_linear"):
        ys = _compiled(Call(plan, problem), Arrays(x, layers, x_bias, gate, gate_bias), copies)
    return ys if isinstance(weight, tuple) else ys[0]


def _linear(call: Call[Problem], arrays: Arrays, rounded):
    return call.by_platform(_kernel_forward, _reference_forward, arrays, rounded)


def _forward(call: Call[Problem], arrays, rounded):
    asked = Asked.of(jax.tree.map(lambda leaf: leaf.perturbed, arrays))
    arrays, rounded = jax.tree.map(lambda leaf: leaf.value, (arrays, rounded))
    y = first_order_only("fused_linear", partial(_linear, call))(arrays, rounded)
    kept = tuple(layer._replace(residual=None) for layer in arrays.layers)
    return y, (arrays._replace(layers=kept), rounded, asked)


def _backward(call: Call[Problem], saved, dys):
    both, dtype = partial(call.by_platform, _kernel_backward, _reference_backward), saved[0].x.dtype
    dys = tuple(jnp.zeros(dy.shape, dtype) if isinstance(dy, SymbolicZero) else dy for dy in dys)
    return first_order_only("fused_linear", both)(*saved, dys), None


_differentiable = jax.custom_vjp(_linear, nondiff_argnums=(0,))
_differentiable.defvjp(_forward, _backward, symbolic_zeros=True)  # says which gradients are asked for
_compiled = jax.jit(_differentiable, static_argnums=(0,))  # so that eager calls are traced once


def _kernel_forward(call: Call[Problem], arrays: Arrays, rounded):
    return launch.forward(call.plan, call.problem, arrays, rounded)


def _kernel_backward(call: Call[Problem], arrays: Arrays, rounded, asked: Asked, dys) -> Arrays:
    return launch.backward(call.plan, call.problem, arrays, rounded, dys, asked)


def _reference_forward(call: Call[Problem], arrays: Arrays, rounded=None):
    given = arrays._asdict()
    weights, biases, residuals = zip(*given.pop("layers"), strict=True)
    return reference.fused_linear(
        weight=weights, bias=biases, residual=residuals, **given, activation=call.problem.activation
    )


def _reference_backward(call: Call[Problem], arrays: Arrays, rounded, asked: Asked, dys) -> Arrays:
    _, pullback = jax.vjp(partial(_reference_forward, call), arrays)
    found = pullback(dys)[0]
    each = zip(found.layers, dys, call.problem.residual, strict=True)
    return asked.only(found._replace(layers=tuple(layer._replace(residual=d if r else None) for layer, d, r in each)))
