"""Laws of linear_cross_entropy, on any rung: tokens never touch, to the bit; any launch shape gives the same."""

import jax.numpy as jnp
import numpy as np

from bench import parity
from bench.ops.cross_entropy import DHIDDEN, FORWARD, KERNELS
from pallas_kernels import LinearTiles, linear_cross_entropy, use_tiles
from tests import cases

DTYPES = (jnp.bfloat16, jnp.float32)
LAUNCH_SHAPES = (
    LinearTiles(16, 16, 32, 1, 1, num_splits=2),
    LinearTiles(32, 64, 16, 8, 3),
    LinearTiles(64, 16, 32, 4, 2, num_splits=9),
)
TOKENS, FEATURES, WORDS = 37, 20, 77


def launched(tiles: LinearTiles):
    """All kernels launched with these tiles; the vocabulary alone is split."""
    whole = LinearTiles(tiles.block_m, tiles.block_n, tiles.block_k, tiles.num_warps, tiles.num_stages)
    return use_tiles(**dict.fromkeys(KERNELS, whole) | {DHIDDEN: tiles})


def arrays(seed: int, dtype=jnp.float32):
    """hidden, weight, targets, factors, so_far."""
    r = cases.rng(seed)
    hidden, weight, so_far = (cases.normal(r, rows, FEATURES) for rows in (TOKENS, WORDS, WORDS))
    targets, factors = r.integers(0, WORDS, TOKENS), r.uniform(0.1, 1, TOKENS)
    given = (hidden, dtype), (weight, dtype), (targets, jnp.int32), (factors, jnp.float32), (so_far, jnp.float32)
    return tuple(jnp.asarray(array, dtype) for array, dtype in given)


def everything(implementation, hidden, weight, targets, factors, so_far):
    return linear_cross_entropy(hidden, weight, targets, factors, so_far=so_far, implementation=implementation)


def check_isolation(rung: str) -> None:
    """Changing one token changes no bit of losses and dhidden of another."""
    hidden, *rest = arrays(0)
    with launched(LinearTiles(16, 32, 16, 4, 1)):
        before = parity.run(rung, everything, hidden, *rest)[:2]
        after = parity.run(rung, everything, hidden.at[20].set(jnp.nan), *rest)[:2]
    for old, new in zip(before, after, strict=True):
        (changed,) = np.nonzero((old != new).reshape(TOKENS, -1).any(1))
        assert list(changed) == [20]


def check_what_does_not_count(rung: str, dtype) -> None:
    """What a token of factor 0 holds changes no bit of anything, and its own results are 0."""
    hidden, weight, targets, factors, so_far = arrays(1, dtype)
    ignored = jnp.asarray([3, 16, 36])
    factors = factors.at[ignored].set(0)
    with launched(LinearTiles(16, 16, 16, 4, 1)):
        found = [
            parity.run(rung, everything, hidden.at[ignored].set(value), weight, targets, factors, so_far)
            for value in (0.0, jnp.nan, jnp.inf)
        ]
    for other in found[1:]:
        for value, expected in zip(other, found[0], strict=True):
            np.testing.assert_array_equal(value, expected)
    losses, dhidden, dweight = found[0]
    assert not losses[ignored].any()
    assert not dhidden[ignored].any()
    assert np.isfinite(dweight).all()


def check_logits_far_below_zero(rung: str) -> None:
    """All below -88, whose exponential is 0, beside words that do not exist, in tiles of the gradients over several
    blocks of the vocabulary: no maximum that is not there makes a NaN.
    """
    hidden, weight, *rest = arrays(3)
    given = jnp.abs(hidden) + 1, -9 * (jnp.abs(weight) + 1), *rest
    assert jnp.max(given[0] @ given[1].T) < -88
    narrow, several = LinearTiles(16, 16, 16, 4, 1), LinearTiles(32, 16, 32, 4, 1)
    with use_tiles(**dict.fromkeys(KERNELS, several) | {FORWARD: narrow}):
        found = parity.run(rung, everything, *given)
    for value, expected in zip(found, parity.run("xla", everything, *given), strict=True):
        assert np.isfinite(value).all()
        np.testing.assert_allclose(value, expected, rtol=2e-5, atol=2e-5 * max(1.0, parity.scale(expected)))


def check_launch_shape(rung: str, tiles: LinearTiles) -> None:
    """Any tiles give the same up to rounding."""
    given = arrays(2)
    with launched(tiles):
        found = parity.run(rung, everything, *given)
    for value, expected in zip(found, parity.run("xla", everything, *given), strict=True):
        np.testing.assert_allclose(value, expected, rtol=2e-5, atol=2e-5 * max(1.0, parity.scale(expected)))
