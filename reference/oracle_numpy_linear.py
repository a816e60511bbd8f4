r"""The truth of fused_linear in float64 NumPy.

y = a W^T + bias + residual, a = act(x + x_bias);  silu(u) = u s with s = 1 / (1 + exp(-u)).

adjoint    dy W -> da;  dx = da act'(x + x_bias), silu'(u) = s + u s (1 - s);  sum dx -> dx_bias;
           dy^T a -> dweight;  sum dy -> dbias;  dy -> dresidual
"""

import numpy as np
from numpy.typing import ArrayLike


def _inputs(x, x_bias, activation):
    """(a, act') of every entry of x."""
    u = np.asarray(x, np.float64) + x_bias
    if activation is None:
        return u, np.ones(u.shape)
    s = 1.0 / (1.0 + np.exp(-u))
    return u * s, s + u * s * (1.0 - s)


def fused_linear(
    x, weight, bias: ArrayLike = 0.0, *, x_bias: ArrayLike = 0.0, residual: ArrayLike = 0.0, activation=None
):
    """y [B, L, O] in float64."""
    a, _ = _inputs(x, x_bias, activation)
    return a @ np.asarray(weight, np.float64).T + np.asarray(bias) + np.asarray(residual)


def fused_linear_vjp(
    x, weight, bias: ArrayLike = 0.0, *, x_bias: ArrayLike = 0.0, residual: ArrayLike = 0.0, activation=None, dy
):
    """Gradients of sum(y dy): dict over x, weight, bias, x_bias, residual."""
    a, slope = _inputs(x, x_bias, activation)
    dx = dy @ np.asarray(weight, np.float64) * slope
    return {
        "x": dx,
        "weight": np.tensordot(dy, a, ((0, 1), (0, 1))),
        "bias": dy.sum((0, 1)),
        "x_bias": dx.sum((0, 1)),
        "residual": dy,
    }
