r"""The truth of linear_cross_entropy in float64 NumPy, token by token.

z = W h;  p = exp(z - max z) / sum;  loss = -a log p_y;  dz = a (p - onehot(y));  W^T dz -> dhidden;  dz h^T -> dweight
"""

import numpy as np
from numpy.typing import ArrayLike


def linear_cross_entropy(hidden, weight, targets, factors, so_far: ArrayLike = 0.0):
    """(losses [T], dhidden [T, D], dweight [V, D]) in float64."""
    h, w, a = (np.asarray(array, np.float64) for array in (hidden, weight, factors))
    losses, dhidden, dweight = np.zeros(a.shape), np.zeros(h.shape), np.zeros(w.shape) + np.asarray(so_far, np.float64)
    for t in np.flatnonzero(a):
        z = w @ h[t]
        log_p = z - z.max() - np.log(np.exp(z - z.max()).sum())
        losses[t] = -a[t] * log_p[targets[t]]
        dz = a[t] * np.exp(log_p)
        dz[targets[t]] -= a[t]
        dhidden[t] = w.T @ dz
        dweight += np.outer(dz, h[t])
    return losses, dhidden, dweight
