"""The tolerance policy: the only place with a number in it, for the tests and for the parity tables alike.

A kernel passes if its error against the float64 oracle is at most FACTOR times (gradients: GRADIENT_FACTOR) that of
the XLA reference of the same dtype, with a floor of FLOOR_EPS rounding units of that dtype: times the RMS of the
oracle's values for the RMS of the error, times their largest magnitude for the largest error. Integers are equal.

Problems that are too large for the oracle are compared with the reference alone: REFERENCE_EPS rounding units of the
RMS, PEAK times that for the largest error. Errors of a float32 sum of many terms grow with their number, and this
leaves room for thousands.
"""

FACTOR = 2.0
GRADIENT_FACTOR = 3.0
FLOOR_EPS = 8.0
REFERENCE_EPS = 100.0
PEAK = 20.0
EPS = {"float32": 2.0**-24, "complex64": 2.0**-24, "bfloat16": 2.0**-8, "int32": 0.0}


def shares(line) -> tuple[float, float]:
    """How much of what the policy allows a `parity.Line` uses, in relative RMS and in its largest error; 1 is all."""
    factor = GRADIENT_FACTOR if line.gradient else FACTOR
    floor = FLOOR_EPS * EPS[line.dtype]
    return (
        _share(line.kernel.relative_rms, max(factor * line.reference.relative_rms, floor)),
        _share(line.kernel.max_abs, max(factor * line.reference.max_abs, floor * line.peak)),
    )


def within(line) -> bool:
    """Does the line keep to the policy? An error that is not a number does not."""
    return all(share <= 1.0 for share in shares(line))


def agree(errors, dtype: str, units: float = REFERENCE_EPS) -> bool:
    """Do `parity.Errors` of a value of `dtype` against another implementation keep within `units` rounding units?"""
    bound = units * EPS[dtype]
    return errors.relative_rms <= bound and errors.max_abs <= PEAK * bound


def _share(error: float, allowed: float) -> float:
    if allowed == 0.0:
        return 0.0 if error == 0.0 else float("inf")
    return error / allowed
