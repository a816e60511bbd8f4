"""Errors against the float64 oracle, and the bound under which a speed ratio may be claimed.

    relative RMS = rms(result - oracle) / rms(oracle)           max abs = max |result - oracle|

The bound holds for each tensor on its own, y and every gradient, with eps that of float32:

    relative RMS <= 2 (relative RMS of the scan) + 8 eps

It is strict enough for a single wrong element to show, and max abs, which follows the largest values of a tensor, is
reported beside it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from reference import oracle_numpy

TENSORS = ("y", "x", "p", "q", "gamma")  # y, then the gradients: the order in which programs return them

_EPS = float(np.finfo(np.float32).eps)
_GROUP = 64  # features per oracle run: it keeps every complex128 state, and features do not interact


@dataclass(frozen=True)
class Error:
    """Error of one tensor against the oracle."""

    relative_rms: float
    max_abs: float


def oracle(dy, x, p, q, gamma, segment_ids=None) -> dict[str, np.ndarray]:
    """y and the gradients of sum(y dy) by float64 steps, complex ones conjugated into JAX's convention."""
    parts = []
    for start in range(0, x.shape[2], _GROUP):
        f = slice(start, start + _GROUP)
        arguments = (x[..., f], p[f], q[f], gamma[f])
        y, _ = oracle_numpy.complex_ema(*arguments, segment_ids=segment_ids)
        gradients = oracle_numpy.complex_ema_vjp(*arguments, segment_ids=segment_ids, dy=dy[..., f])
        parts.append({"y": y, **gradients})
    axis = {"y": 2, "x": 2, "p": 0, "q": 0, "gamma": 0}
    return {name: np.conj(np.concatenate([part[name] for part in parts], axis[name])) for name in TENSORS}


def error(result, truth: np.ndarray) -> Error:
    """Error of `result` (any array) against `truth`; the relative one is absolute where `truth` is all zero."""
    difference = np.abs(np.asarray(result) - truth)
    scale = _rms(np.abs(truth)) or 1.0
    return Error(_rms(difference) / scale, float(difference.max()))


def out_of_bound(ours: Mapping[str, Error], scan: Mapping[str, Error]) -> list[str]:
    """Names of the tensors on which `ours` breaks the bound; a NaN breaks it."""
    return [name for name, mine in ours.items() if not mine.relative_rms <= 2 * scan[name].relative_rms + 8 * _EPS]


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
