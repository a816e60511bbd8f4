"""Laws of complex_ema that hold to the bit, on any rung: isolation of documents, causality, masked inputs; and that any
launch shape gives the same."""

import jax
import jax.numpy as jnp
import numpy as np

from bench import parity
from pallas_kernels import Tiles, complex_ema, use_tiles
from tests import cases

CHUNKS = (1, 3)
# Of the forward and of the backward.
LAUNCH_SHAPES = (
    (Tiles(8, 1, 1), Tiles(8, 1, 1)),
    (Tiles(2, 2, 1), Tiles(4, 9, 2)),
    (Tiles(4, 9, 2), Tiles(2, 2, 1)),
    (Tiles(32, 1, 1), Tiles(32, 2, 1)),
)
_DOCUMENTS = np.repeat([1, 2, 3, 0, 4], [33, 31, 24, 5, 17])[None].astype(np.int32)  # the third one begins a chunk
_COEFFICIENTS = tuple(map(jnp.asarray, cases.ema(cases.rng(1), 1, 1, 5, 2)[1:5]))


def both(tiles: Tiles):
    """Forward and backward launched with these tiles."""
    return use_tiles(complex_ema_forward=tiles, complex_ema_backward=tiles)


def check_isolation(rung: str, chunks: int) -> None:
    """Changing one document, or making it NaN, changes no bit of another, of the returned state, which is that of the
    last one, and, but for the first, of the gradient of the incoming one; documents begin inside tiles and chunks."""
    x, dy = (jnp.asarray(cases.normal(cases.rng(seed), 1, _DOCUMENTS.size, 5)) for seed in (2, 3))
    h0, dh = (jnp.asarray(cases.ema(cases.rng(seed), 1, 1, 5, 2)[5]) for seed in (11, 12))

    def packed(implementation, x, dy):
        options = {"segment_ids": jnp.asarray(_DOCUMENTS), "return_state": True, "implementation": implementation}
        (y, h), pullback = jax.vjp(lambda x, h0: complex_ema(x, *_COEFFICIENTS, h0=h0, **options), x, h0)
        return y, h, *pullback((dy, dh))

    with both(Tiles(4, chunks, 1)):
        y, h, dx, dh0 = parity.run(rung, packed, x, dy)
        for document in (1, 2, 3):
            inside = _DOCUMENTS[0] == document
            for change in (lambda a, where: a.at[:, where].multiply(1e3), lambda a, where: a.at[:, where].set(jnp.nan)):
                new_y, new_h, new_dx, new_dh0 = parity.run(rung, packed, change(x, inside), change(dy, inside))
                for old, new in ((y, new_y), (dx, new_dx)):
                    np.testing.assert_array_equal(old[:, ~inside], new[:, ~inside])
                    assert not np.array_equal(old, new)
                np.testing.assert_array_equal(new_h, h)
                assert np.array_equal(new_dh0, dh0) == (document != 1)


def check_causality(rung: str) -> None:
    """No bit depends on a later token, in one chunk and over several; also where it is not a number."""
    x = jnp.asarray(cases.normal(cases.rng(4), 1, 75, 5))
    forward = lambda implementation, x: complex_ema(x, *_COEFFICIENTS, implementation=implementation)  # noqa: E731
    for chunks in CHUNKS:
        with both(Tiles(4, chunks, 1)):
            before = parity.run(rung, forward, x)
            for t in (5, 66):
                for later in (jnp.nan, 1e8):
                    after = parity.run(rung, forward, x.at[:, t:].set(later))
                    np.testing.assert_array_equal(after[:, :t], before[:, :t])
                    assert not np.array_equal(after, before)


def check_masked_inputs(rung: str, kind: str) -> None:
    """What a masked input holds reaches nothing, NaN included."""
    tokens = cases.tokens(cases.rng(5), kind, 2, 70)
    valid = tokens["mask"] & (tokens.get("segment_ids", jnp.ones((2, 70), jnp.int32)) != 0)
    x, dy = (jnp.asarray(cases.normal(cases.rng(seed), 2, 70, 5)) for seed in (6, 7))

    def run(implementation, x):
        op = lambda x, *rest: complex_ema(x, *rest, implementation=implementation, **tokens)  # noqa: E731
        y, pullback = jax.vjp(op, x, *_COEFFICIENTS)
        return y, pullback(dy)

    clean, poisoned = (parity.run(rung, run, jnp.where(valid[..., None], x, bad)) for bad in (0.0, jnp.nan))
    for value, expected in zip(*map(jax.tree.leaves, (poisoned, clean)), strict=True):
        np.testing.assert_array_equal(value, expected)


def check_launch_shape(rung: str, shapes: tuple[Tiles, Tiles]) -> None:
    """Any tiles of the forward and of the backward give the same up to rounding."""
    x, dy = (jnp.asarray(cases.normal(cases.rng(seed), 2, 105, 5)) for seed in (8, 9))
    tokens = {"segment_ids": jnp.asarray(np.repeat([[1, 2, 3], [0, 1, 2]], [32, 64, 9], axis=1).astype(np.int32))}
    tokens["mask"] = jnp.asarray(cases.rng(10).random((2, 105)) > 0.2)

    def run(implementation, x):
        op = lambda *args: complex_ema(*args, implementation=implementation, **tokens)  # noqa: E731
        y, pullback = jax.vjp(op, x, *_COEFFICIENTS)
        return y, *pullback(dy)

    forward, backward = shapes
    with use_tiles(complex_ema_forward=forward, complex_ema_backward=backward):
        found = parity.run(rung, run, x)
    for value, expected in zip(found, parity.run("xla", run, x), strict=True):
        np.testing.assert_allclose(value, expected, rtol=2e-5, atol=2e-5 * max(1.0, parity.scale(expected)))
