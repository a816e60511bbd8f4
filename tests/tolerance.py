"""The tolerance policy of `bench/tolerance.py` as assertions, and the bound that a model is held to."""

import numpy as np

from bench.parity import Line
from bench.tolerance import EPS, PEAK, REFERENCE_EPS, shares, within

MODEL_RELATIVE = 1e-5


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
    assert worst <= PEAK * bound, f"{name}: max error {worst:.2e} of the RMS > {PEAK * bound:.2e}"


def assert_policy(line: Line) -> None:
    """A kernel's errors within the policy."""
    assert within(line), f"{line.name}: {line.kernel} uses {shares(line)} of what {line.reference} allows"
