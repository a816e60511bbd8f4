"""Laws of timestep_norm that hold to the bit, on any rung: isolation of documents, causality, masks, launch shapes."""

import jax
import jax.numpy as jnp
import numpy as np

from bench import parity
from pallas_kernels import Tiles, timestep_norm, use_tiles
from tests import cases

STATISTICS = ("token_mean", "all_features")
CHUNKS = (1, 3)
LAUNCH_SHAPES = (Tiles(32, 1, 1), Tiles(8, 2, 1), Tiles(8, 9, 1), Tiles(128, 4, 1))
_DOCUMENTS = np.repeat([1, 2, 0, 3], [33, 30, 5, 22])[None].astype(np.int32)


def both(tiles: Tiles):
    """Forward and backward launched with these tiles."""
    return use_tiles(timestep_norm_forward=tiles, timestep_norm_backward=tiles)


def with_gradient(implementation, x, dy, **kwargs):
    """Output and input gradient."""
    y, pullback = jax.vjp(lambda x: timestep_norm(x, implementation=implementation, **kwargs), x)
    return y, pullback(dy)[0]


def check_isolation(rung: str, statistics: str, chunks: int) -> None:
    """Changing one document, or making it NaN, changes no bit of another; documents begin inside tiles and chunks."""
    r = cases.rng(1)
    x, dy = (jnp.asarray(cases.normal(r, 1, _DOCUMENTS.size, 6)) for _ in range(2))

    def packed(implementation, x):
        return with_gradient(
            implementation, x, dy, num_groups=2, segment_ids=jnp.asarray(_DOCUMENTS), statistics=statistics
        )

    with both(Tiles(16, chunks, 1)):
        before = parity.run(rung, packed, x)
        for document in (1, 2, 3):
            inside = _DOCUMENTS[0] == document
            for changed in (x.at[:, inside].multiply(1e3), x.at[:, inside].set(jnp.nan)):
                after = parity.run(rung, packed, changed)
                for old, new in zip(before, after, strict=True):
                    np.testing.assert_array_equal(old[:, ~inside], new[:, ~inside])
                assert not np.array_equal(before[0], after[0])


def check_causality(rung: str, statistics: str) -> None:
    """No bit depends on a later token, in one tile, over several and over chunks; also where it is not a number."""
    x = jnp.asarray(cases.normal(cases.rng(5), 1, 40, 6))

    def forward(implementation, x):
        return timestep_norm(x, num_groups=2, statistics=statistics, implementation=implementation)

    for tiles in (Tiles(64, 1, 1), Tiles(16, 1, 1), Tiles(8, 3, 1)):
        with both(tiles):
            before = parity.run(rung, forward, x)
            for t in (5, 27):
                for later in (jnp.nan, 1e8):
                    after = parity.run(rung, forward, x.at[:, t:].set(later))
                    np.testing.assert_array_equal(after[:, :t], before[:, :t])
                    assert not np.array_equal(after, before)


def check_masked_values(rung: str) -> None:
    """Where a masked token gives 0, what it holds reaches nothing, NaN included."""
    x = jnp.asarray(cases.normal(cases.rng(6), 2, 30, 6))
    mask = jnp.asarray(cases.rng(7).random((2, 30)) > 0.3)

    def gradients(implementation, x):
        def loss(x, weight):
            y = timestep_norm(
                x, weight, num_groups=2, mask=mask, statistics="all_features", implementation=implementation
            )
            return jnp.sum(jnp.sin(y))

        return jax.grad(loss, argnums=(0, 1))(x, jnp.ones(6))

    clean, poisoned = (parity.run(rung, gradients, jnp.where(mask[..., None], x, bad)) for bad in (0.0, jnp.nan))
    for value, expected in zip(poisoned, clean, strict=True):
        np.testing.assert_array_equal(value, expected)


def check_launch_shape(rung: str, tiles: Tiles) -> None:
    """Any tiles give the same up to rounding."""
    r = cases.rng(3)
    x, dy = (jnp.asarray(cases.normal(r, 2, 70, 9)) for _ in range(2))
    mask = jnp.asarray(r.random((2, 70)) > 0.2)

    def run(implementation, x):
        return with_gradient(implementation, x, dy, num_groups=3, mask=mask)

    with both(tiles):
        found = parity.run(rung, run, x)
    for value, expected in zip(found, parity.run("xla", run, x), strict=True):
        np.testing.assert_allclose(value, expected, rtol=2e-5, atol=2e-5)
