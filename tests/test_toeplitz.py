"""The tensor-core formulation of complex_ema that the kernels do not use: it is right, and its figures are what the
decision against it says."""

import jax.numpy as jnp
import numpy as np
import pytest

from bench import inspect_toeplitz, toeplitz
from bench.inspect import tools
from bench.parity import errors
from reference import oracle_numpy


@pytest.mark.parametrize("features", [1, 2, 4])
def test_it_computes_the_op(features):
    r = np.random.default_rng(features)
    D, N = 4, 16
    q = (r.uniform(0.0, 0.9999, (D, N)) * np.exp(1j * r.uniform(-np.pi, np.pi, (D, N)))).astype(np.complex64)
    gamma = (r.normal(size=(D, N)) + 1j * r.normal(size=(D, N))).astype(np.complex64)
    given = r.uniform(0.05, 1.0, (D, N)).astype(np.float32), q, gamma, r.normal(size=D).astype(np.float32)
    x = jnp.asarray(r.normal(size=(4, 128, D)), jnp.bfloat16)
    shape = toeplitz.Shape(rows=8, steps=16, features=features, warps=4, chunk=64)
    y = toeplitz.complex_ema(x, *map(jnp.asarray, given), shape, interpret=True)
    expected, _ = oracle_numpy.complex_ema(np.asarray(x, np.float64), *given)
    rounding = errors(np.asarray(jnp.asarray(expected, jnp.bfloat16), np.float64), expected).relative_rms
    assert errors(np.asarray(y, np.float64), expected).relative_rms < 1.01 * rounding  # that of y itself, no more


@pytest.mark.all_targets
@pytest.mark.skipif(tools.missing() is not None, reason=str(tools.missing()))
def test_the_figures_that_decided():
    bound = lambda passes: sum(one.bound_us for one in passes)  # noqa: E731
    kernels = inspect_toeplitz.kernels()
    forms = {shape: inspect_toeplitz.formulation(shape) for shape in inspect_toeplitz.SHAPES}
    for shape, passes in forms.items():
        if sum(one.spill_bytes for one in passes) == 0:
            assert bound(passes) > 1.5 * bound(kernels)
        else:
            assert shape.features > 2
    best = min(forms.values(), key=bound)
    assert bound(best) < bound(kernels)
    assert max(one.warps for one in best) <= min(one.warps for one in kernels) / 4
