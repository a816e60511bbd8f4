"""Laws of feature_norm, on any rung: tokens never touch, to the bit; scale and, if centred, shift of a token make no
difference; any launch shape gives the same."""

import jax
import jax.numpy as jnp
import numpy as np

from bench import parity
from bench.ops.features import KERNELS
from pallas_kernels import Tiles, feature_norm, use_tiles
from tests import cases

LAUNCH_SHAPES = (Tiles(16, 1, 1), Tiles(4, 3, 2), Tiles(32, 9, 4))
LENGTH = 37


def launched(tiles: Tiles):
    """Both kernels launched with these tiles."""
    return use_tiles(**dict.fromkeys(KERNELS, tiles))


def arrays(seed: int):
    """x, weight, bias, dy: two rows, 12 features."""
    r = cases.rng(seed)
    return tuple(jnp.asarray(cases.normal(r, *shape)) for shape in ((2, LENGTH, 12), (12,), (12,), (2, LENGTH, 12)))


def with_gradients(implementation, x, weight, bias, dy, *, centred=True, eps=1e-5):
    """y, dx, dweight, dbias."""
    op = lambda *moving: feature_norm(*moving, centred=centred, eps=eps, implementation=implementation)  # noqa: E731
    y, pullback = jax.vjp(op, x, weight, bias)
    return y, *pullback(dy)


def check_invariance(rung: str, centred: bool) -> None:
    """y of a x + b is that of x; b = 0 where the mean counts."""
    x, *rest = arrays(0)

    def run(implementation, x):
        return with_gradients(implementation, x, *rest, centred=centred, eps=1e-12)[:2]

    with launched(Tiles(16, 2, 1)):
        (y, dx), (other, dother) = (parity.run(rung, run, part) for part in (x, 4.0 * x + 3.0 * centred))
    np.testing.assert_allclose(other, y, atol=1e-4)
    np.testing.assert_allclose(4.0 * dother, dx, atol=1e-4 * parity.scale(dx))


def check_isolation(rung: str) -> None:
    """Changing one token, or making it NaN, changes no bit of y and dx of another."""
    x, *rest = arrays(1)
    with launched(Tiles(16, 2, 1)):
        before = parity.run(rung, with_gradients, x, *rest)[:2]
        for value in (jnp.nan, 1e4):
            after = parity.run(rung, with_gradients, x.at[:, 20, 1].set(value), *rest)[:2]
            for old, new in zip(before, after, strict=True):
                changed = (old != new).any(-1)
                assert changed[:, 20].all()
                assert changed.sum() == 2


def check_launch_shape(rung: str, tiles: Tiles) -> None:
    """Any tiles give the same up to rounding."""
    given = arrays(2)
    with launched(tiles):
        found = parity.run(rung, with_gradients, *given)
    for value, expected in zip(found, parity.run("xla", with_gradients, *given), strict=True):
        np.testing.assert_allclose(value, expected, rtol=2e-5, atol=2e-5 * max(1.0, parity.scale(expected)))
