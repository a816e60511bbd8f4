"""The law of round_weights, on any rung: every number as `astype` rounds it, bit by bit."""

import jax.numpy as jnp
import numpy as np

from bench import parity
from pallas_kernels import round_weights
from tests import cases

DTYPES = ((jnp.float32, jnp.bfloat16), (jnp.bfloat16, jnp.float32))
SHAPES = ((64, 96), (33, 7), (1, 1), (40, 128))  # whole blocks, part of one, one number, and more than one block


def weights(dtype=jnp.float32):
    """Halves of the last place among them, which go to the even neighbour, and what overflows."""
    r = cases.rng(0)
    found = [jnp.asarray(cases.normal(r, *shape)) for shape in SHAPES]
    special = jnp.asarray([1.0 + 2**-8, 1.0 + 3 * 2**-8, -0.0, jnp.inf, jnp.nan, 3.4e38, 1e-40])
    return [w.astype(dtype) for w in (found[0].at[0, : special.size].set(special), *found[1:])]


def check_rounding(rung: str, given, wanted) -> None:
    """Into other dtypes, in blocks that the shapes do not divide."""
    arrays = weights(given)
    found = parity.run(
        rung, lambda implementation, *w: round_weights(*w, dtype=wanted, implementation=implementation), *arrays
    )
    for copy, weight in zip(found, arrays, strict=True):
        assert copy.dtype == wanted
        np.testing.assert_array_equal(copy.astype(np.float32), np.asarray(weight.astype(wanted), np.float32))
