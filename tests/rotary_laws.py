"""Laws of normalized_rotary, on any rung: tokens never touch, to the bit; scores depend on differences of positions;
any launch shape gives the same."""

import jax
import jax.numpy as jnp
import numpy as np

from bench import parity
from bench.ops.rotary import KERNELS
from pallas_kernels import Tiles, normalized_rotary, use_tiles
from tests import cases

LAUNCH_SHAPES = (Tiles(16, 1, 1), Tiles(4, 3, 2), Tiles(32, 9, 4))
LENGTH = 37


def launched(tiles: Tiles):
    """Both kernels launched with these tiles."""
    return use_tiles(**dict.fromkeys(KERNELS, tiles))


def arrays(seed: int):
    """z, scale, shift, dq, dk of two rows and two heads."""
    r = cases.rng(seed)
    z, dq, dk = (cases.normal(r, 2, LENGTH, 2, 12) for _ in range(3))
    return tuple(map(jnp.asarray, (z, cases.normal(r, 2, 2, 12), cases.normal(r, 2, 2, 12), dq, dk)))


def with_gradients(implementation, z, scale, shift, dq, dk, *, positions=None, interleaved=False):
    """q, k, dz, dscale, dshift."""
    positions = jnp.arange(LENGTH) if positions is None else positions
    op = lambda *moving: normalized_rotary(  # noqa: E731
        *moving, positions=positions, interleaved=interleaved, implementation=implementation
    )
    (q, k), pullback = jax.vjp(op, z, scale, shift)
    return q, k, *pullback((dq, dk))


def check_shift(rung: str, interleaved: bool) -> None:
    """Norms and scores are those of any other start."""
    given = arrays(0)

    def run(implementation, start):
        positions = start[:, None] + jnp.arange(LENGTH)
        return with_gradients(implementation, *given, positions=positions, interleaved=interleaved)

    with launched(Tiles(16, 2, 1)):
        first, later = (parity.run(rung, run, jnp.asarray(start)) for start in ((0, 3), (100, 7)))
    scores = [np.einsum("bihd,bjhd->bhij", found[0], found[1]) for found in (first, later)]
    np.testing.assert_allclose(scores[1], scores[0], atol=2e-4)
    assert not np.allclose(first[0], later[0])


def check_isolation(rung: str) -> None:
    """Changing one token, or making it NaN, changes no bit of q, k and dz of another."""
    z, scale, shift, dq, dk = arrays(1)
    with launched(Tiles(16, 2, 1)):
        before = parity.run(rung, with_gradients, z, scale, shift, dq, dk)[:3]
        for value in (jnp.nan, 1e4):
            after = parity.run(rung, with_gradients, z.at[:, 20, 1].set(value), scale, shift, dq, dk)[:3]
            for old, new in zip(before, after, strict=True):
                changed = (old != new).any(-1)
                assert changed[:, 20, 1].all()
                assert changed.sum() == 2


def check_launch_shape(rung: str, tiles: Tiles) -> None:
    """Any tiles give the same up to rounding."""
    given = arrays(2)
    with launched(tiles):
        found = parity.run(rung, with_gradients, *given)
    for value, expected in zip(found, parity.run("xla", with_gradients, *given), strict=True):
        np.testing.assert_allclose(value, expected, rtol=2e-5, atol=2e-5 * max(1.0, parity.scale(expected)))
