"""Laws of fused_linear, on any rung: rows never touch, to the bit; any launch shape gives the same."""

import jax
import jax.numpy as jnp
import numpy as np

from bench import parity
from bench.ops.linear import KERNELS
from pallas_kernels import LinearTiles, fused_linear, use_tiles
from tests import cases

LAUNCH_SHAPES = (
    LinearTiles(16, 32, 16, 1, 1, num_splits=2),
    LinearTiles(64, 16, 32, 4, 2, num_splits=9),
    LinearTiles(32, 64, 64, 8, 3),
)
LENGTH = 37


def launched(tiles: LinearTiles):
    """All kernels launched with these tiles."""
    return use_tiles(**dict.fromkeys(KERNELS, tiles))


def arrays(seed: int):
    """x, weight, bias, x_bias, residual, dy: two rows, 50 features, 35 outputs."""
    r = cases.rng(seed)
    shapes = ((2, LENGTH, 50), (35, 50), (35,), (50,), (2, LENGTH, 35), (2, LENGTH, 35))
    return tuple(jnp.asarray(cases.normal(r, *shape)) for shape in shapes)


def with_gradients(implementation, x, weight, bias, x_bias, residual, dy):
    """y, dx and the other gradients."""
    op = lambda x, weight, bias, x_bias, residual: fused_linear(  # noqa: E731
        x, weight, bias, x_bias=x_bias, residual=residual, activation="silu", implementation=implementation
    )
    y, pullback = jax.vjp(op, x, weight, bias, x_bias, residual)
    return y, *pullback(dy)


def check_isolation(rung: str) -> None:
    """Changing one token, or making it NaN, changes no bit of y and dx of another."""
    x, *rest = arrays(0)
    with launched(LinearTiles(16, 32, 16, 4, 1)):
        before = parity.run(rung, with_gradients, x, *rest)[:2]
        for value in (jnp.nan, 1e4):
            after = parity.run(rung, with_gradients, x.at[:, 20].set(value), *rest)[:2]
            for old, new in zip(before, after, strict=True):
                changed = (old != new).any(-1)
                assert changed[:, 20].all()
                assert changed.sum() == 2


def check_launch_shape(rung: str, tiles: LinearTiles) -> None:
    """Any tiles give the same up to rounding."""
    given = arrays(1)
    with launched(tiles):
        found = parity.run(rung, with_gradients, *given)
    for value, expected in zip(found, parity.run("xla", with_gradients, *given), strict=True):
        np.testing.assert_allclose(value, expected, rtol=2e-5, atol=2e-5 * max(1.0, parity.scale(expected)))
