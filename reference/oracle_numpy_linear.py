r"""The truth of fused_linear in float64 NumPy, one layer of one x.

y = a W^T + bias + residual, a = h silu(g), h = act(u), u = x + x_bias, g = gate + gate_bias;  without a gate a = h;
silu(u) = u s with s = 1 / (1 + exp(-u)).

adjoint    dy W -> da;  dx = da silu(g) act'(u), silu'(u) = s + u s (1 - s);  dgate = da h silu'(g);  sum dx -> dx_bias;
           sum dgate -> dgate_bias;  dy^T a -> dweight;  sum dy -> dbias;  dy -> dresidual
"""

import numpy as np
from numpy.typing import ArrayLike


def _silu(u):
    """(silu, silu') of every entry."""
    s = 1.0 / (1.0 + np.exp(-u))
    return u * s, s + u * s * (1.0 - s)


def _front(x, x_bias, gate, gate_bias, activation):
    """(a, da/dx, da/dgate) of every entry of x."""
    u = np.asarray(x, np.float64) + x_bias
    h, slope = (u, np.ones(u.shape)) if activation is None else _silu(u)
    if gate is None:
        return h, slope, np.zeros(u.shape)
    opened, opening = _silu(np.asarray(gate, np.float64) + gate_bias)
    return h * opened, slope * opened, h * opening


def fused_linear(
    x, weight, bias: ArrayLike = 0.0, *, x_bias: ArrayLike = 0.0, gate=None, gate_bias: ArrayLike = 0.0,
    residual: ArrayLike = 0.0, activation=None,
):  # fmt: skip
    """y [B, L, O] in float64."""
    a, _, _ = _front(x, x_bias, gate, gate_bias, activation)
    return a @ np.asarray(weight, np.float64).T + np.asarray(bias) + np.asarray(residual)


def fused_linear_vjp(
    x, weight, bias: ArrayLike = 0.0, *, x_bias: ArrayLike = 0.0, gate=None, gate_bias: ArrayLike = 0.0,
    residual: ArrayLike = 0.0, activation=None, dy,
):  # fmt: skip
    """Gradients of sum(y dy): dict over x, weight, bias, x_bias, gate, gate_bias, residual."""
    a, to_x, to_gate = _front(x, x_bias, gate, gate_bias, activation)
    da = dy @ np.asarray(weight, np.float64)
    dx, dgate = da * to_x, da * to_gate
    return {
        "x": dx,
        "weight": np.tensordot(dy, a, ((0, 1), (0, 1))),
        "bias": dy.sum((0, 1)),
        "x_bias": dx.sum((0, 1)),
        "gate": dgate,
        "gate_bias": dgate.sum((0, 1)),
        "residual": dy,
    }
