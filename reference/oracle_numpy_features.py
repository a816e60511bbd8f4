r"""The truth of feature_norm in float64 NumPy, one token after the other.

c = x - mean(x), or x if not centred;  s = mean(c^2) + eps;  n = c / sqrt(s);  y = n gain + bias.

adjoint    dy n -> dgain = dweight;  dy -> dbias;  dn = dy gain;  ds = -(dn . c) s^(-3/2) / 2;
           dc = dn / sqrt(s) + 2 c ds / D;  dx = dc - mean(dc), or dc if not centred
"""

import numpy as np
from numpy.typing import ArrayLike


def _cells(x):
    """Index of every token."""
    return np.ndindex(x.shape[:2])


def _parts(token, centred, eps):
    """c, s."""
    c = token - token.mean() if centred else token
    return c, np.mean(c**2) + eps


def feature_norm(x, weight: ArrayLike | None = None, bias: ArrayLike = 0.0, *, centred, minus_one=False, eps=1e-5):
    """y [B, L, D] in float64."""
    x, gain = np.asarray(x, np.float64), _gain(weight, minus_one)
    y = np.empty(x.shape)
    for cell in _cells(x):
        c, s = _parts(x[cell], centred, eps)
        y[cell] = c / np.sqrt(s) * gain + np.asarray(bias)
    return y


def feature_norm_vjp(x, weight=None, bias=None, *, centred, minus_one=False, eps=1e-5, dy):
    """Gradients of sum(y dy): dict over x and, if there are such, weight and bias."""
    x, dy, gain = np.asarray(x, np.float64), np.asarray(dy, np.float64), _gain(weight, minus_one)
    dx, dweight, dbias = np.empty(x.shape), np.zeros(x.shape[2]), np.zeros(x.shape[2])
    for cell in _cells(x):
        c, s = _parts(x[cell], centred, eps)
        dweight += dy[cell] * c / np.sqrt(s)
        dbias += dy[cell]
        dn = dy[cell] * gain
        ds = -0.5 * np.dot(dn, c) * s**-1.5
        dc = dn / np.sqrt(s) + 2.0 * c * ds / x.shape[2]
        dx[cell] = dc - dc.mean() if centred else dc
    found = {"x": dx, "weight": dweight, "bias": dbias}
    given = {"x": x, "weight": weight, "bias": bias}
    return {name: gradient for name, gradient in found.items() if given[name] is not None}


def _gain(weight, minus_one):
    return np.float64(1.0) if weight is None else np.asarray(weight, np.float64) + (1.0 if minus_one else 0.0)
