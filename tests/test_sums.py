"""Sums over the programs of a kernel, several in one launch."""

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels._sums import over_programs
from tests import cases


def test_each_is_summed_and_none_stays_none():
    r = cases.rng(0)
    first, second = (jnp.asarray(cases.normal(r, 3, 2, 4, 5)) for _ in range(2))
    found = over_programs(first, None, second)
    assert found[1] is None
    for total, part in ((found[0], first), (found[2], second)):
        np.testing.assert_allclose(total, np.asarray(part, np.float64).sum((0, 1)), rtol=1e-5, atol=1e-5)
    assert over_programs(None, None) == (None, None)


def test_one_reduction():
    part = jax.ShapeDtypeStruct((3, 2, 4), jnp.float32)
    text = jax.jit(over_programs).lower(part, part, part).as_text()
    assert text.count("stablehlo.reduce") == 1
