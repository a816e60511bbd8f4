"""The tolerance policy, the only place with a number in it.

An implementation passes if its error against the float64 oracle is at most FACTOR times (gradients: GRADIENT_FACTOR)
the error of the XLA reference of the same dtype, with a floor of FLOOR_EPS rounding units of that dtype times the
scale of the value (the RMS of the oracle). The reference itself is held to REFERENCE_EPS units: errors of a float32
sum of many terms grow with their number, and these bounds leave room for thousands.
"""

import numpy as np

FACTOR = 2.0
GRADIENT_FACTOR = 3.0
FLOOR_EPS = 8.0
REFERENCE_EPS = 100.0
MODEL_RELATIVE = 1e-5

EPS = {"float32": 2.0**-24, "bfloat16": 2.0**-8}


def as_float64(value) -> np.ndarray:
    """NumPy float64, or complex128."""
    value = np.asarray(value)
    return value.astype(np.complex128 if np.iscomplexobj(value) else np.float64)


def errors(value, truth) -> tuple[float, float]:
    """(relative RMS, max abs / RMS of the truth)."""
    value, truth = as_float64(value), as_float64(truth)
    assert value.shape == truth.shape, f"shape {value.shape}, expected {truth.shape}"
    difference, scale = np.abs(value - truth), np.sqrt(np.mean(np.abs(truth) ** 2))
    if scale < 1e-12:  # zero, or the rounding noise of float64 about zero
        scale = 1.0
    return float(np.sqrt(np.mean(difference**2)) / scale), float(difference.max() / scale)


def assert_close(name: str, value, truth, *, dtype: str = "float32", units: float = REFERENCE_EPS) -> None:
    """Relative RMS and max error within `units` rounding units of `dtype`."""
    rms, worst = errors(value, truth)
    bound = units * EPS[dtype]
    assert rms <= bound, f"{name}: relative RMS error {rms:.2e} > {bound:.2e} (max {worst:.2e})"
    assert worst <= 20 * bound, f"{name}: max error {worst:.2e} of the RMS > {20 * bound:.2e}"
