"""The TimestepNorm kernels against XLA reference and oracles: interpreted by Pallas, and as executed lowered IR."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bench.inspect.triton_ir import execute
from pallas_kernels import Tiles, timestep_norm, use_tiles
from tests import cases, norm_parity

FORWARD, BACKWARD = "timestep_norm_forward", "timestep_norm_backward"


@pytest.mark.parametrize("spec", norm_parity.SPECS, ids=norm_parity.IDS)
def test_interpreted(spec):
    norm_parity.check(spec, "triton_interpret")


@pytest.mark.parametrize("spec", norm_parity.SPECS, ids=norm_parity.IDS)
def test_lowered(spec):
    norm_parity.check(spec, "lowered")


@pytest.mark.parametrize("dtype", norm_parity.MODEL_DTYPES)
def test_model_interpreted(dtype):
    norm_parity.check_model(dtype, "triton_interpret")


LENGTH = 90
IDS = jnp.asarray(np.repeat([1, 2, 0, 3], [33, 30, 5, 22])[None].astype(np.int32))


def packed(x, dy, statistics, implementation):
    """Output and input gradient with documents that begin inside tiles and inside chunks."""
    f = lambda x: timestep_norm(  # noqa: E731
        x, num_groups=2, segment_ids=IDS, statistics=statistics, implementation=implementation
    )
    y, pullback = jax.vjp(f, x)
    return y, pullback(dy)[0]


@pytest.mark.parametrize("statistics", ["token_mean", "all_features"])
@pytest.mark.parametrize("chunks", [1, 3])
def test_documents_never_touch(statistics, chunks):
    """Changing one document, or making it NaN, changes no bit of another, forward and backward."""
    r = cases.rng(1)
    x, dy = jnp.asarray(cases.normal(r, 1, LENGTH, 6)), jnp.asarray(cases.normal(r, 1, LENGTH, 6))
    tiles = Tiles(16, chunks, 1)
    with use_tiles(timestep_norm_forward=tiles, timestep_norm_backward=tiles):

        def lowered(x):
            found, _ = execute(lambda x, dy: packed(x, dy, statistics, "triton"), x, dy)
            return map(np.asarray, found)

        interpreted = jax.jit(lambda x: packed(x, dy, statistics, "triton_interpret"))
        for run in (lowered, interpreted):
            before = [np.asarray(a) for a in run(x)]
            for document in (1, 2, 3):
                inside = np.asarray(IDS[0] == document)
                for changed in (x.at[:, inside].multiply(1e3), x.at[:, inside].set(jnp.nan)):
                    after = [np.asarray(a) for a in run(changed)]
                    for old, new in zip(before, after, strict=True):
                        np.testing.assert_array_equal(old[:, ~inside], new[:, ~inside])
                    assert not np.array_equal(before[0], after[0])


@pytest.mark.parametrize("statistics", ["token_mean", "all_features"])
@pytest.mark.parametrize("rung", ["interpreted", "lowered"])
def test_no_token_depends_on_a_later_one(statistics, rung):
    """Bit for bit, in one tile, over several and over chunks; also where the later ones are no numbers."""
    x = jnp.asarray(cases.normal(cases.rng(5), 1, 40, 6))

    def f(x, implementation):
        return timestep_norm(x, num_groups=2, statistics=statistics, implementation=implementation)

    def run(x):
        if rung == "interpreted":
            return np.asarray(f(x, "triton_interpret"))
        return np.asarray(execute(lambda x: f(x, "triton"), x)[0])

    for tiles in (Tiles(64, 1, 1), Tiles(16, 1, 1), Tiles(8, 3, 1)):
        with use_tiles(timestep_norm_forward=tiles):
            before = run(x)
            for t in (5, 27):
                for later in (jnp.nan, 1e8):
                    after = run(x.at[:, t:].set(later))
                    np.testing.assert_array_equal(after[:, :t], before[:, :t])
                    assert not np.array_equal(after, before)


def test_masked_values_may_be_anything_where_they_give_nothing():
    x = jnp.asarray(cases.normal(cases.rng(6), 2, 30, 6))
    mask = jnp.asarray(cases.rng(7).random((2, 30)) > 0.3)
    weight = jnp.ones(6)

    def gradients(x, implementation):
        def loss(x, weight):
            y = timestep_norm(
                x, weight, num_groups=2, mask=mask, statistics="all_features", implementation=implementation
            )
            return jnp.sum(jnp.sin(y))

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(x, weight)

    for implementation in ("triton_interpret", "xla"):
        clean, poisoned = (gradients(jnp.where(mask[..., None], x, bad), implementation) for bad in (0.0, jnp.nan))
        for value, expected in zip(poisoned, clean, strict=True):
            np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize("tiles", [Tiles(32, 1, 1), Tiles(8, 2, 1), Tiles(8, 9, 1), Tiles(128, 4, 1)])
def test_every_launch_shape_gives_the_same(tiles):
    r = cases.rng(3)
    x = jnp.asarray(cases.normal(r, 2, 70, 9))
    mask = jnp.asarray(r.random((2, 70)) > 0.2)

    def both(x):
        f = lambda x: timestep_norm(x, num_groups=3, mask=mask, implementation="triton_interpret")  # noqa: E731
        y, pullback = jax.vjp(f, x)
        return y, pullback(jnp.cos(x))[0]

    with use_tiles(timestep_norm_forward=tiles, timestep_norm_backward=tiles):
        found = jax.jit(both)(x)
    for value, expected in zip(found, jax.jit(both)(x), strict=True):
        np.testing.assert_allclose(value, expected, rtol=2e-5, atol=2e-5)


def test_execution_does_not_depend_on_the_order_of_the_programs():
    x = jnp.asarray(cases.normal(cases.rng(4), 3, 50, 8))
    tiles = Tiles(8, 3, 1)
    with use_tiles(timestep_norm_forward=tiles, timestep_norm_backward=tiles):
        f = jax.grad(lambda x: jnp.sum(jnp.sin(timestep_norm(x, num_groups=2, implementation="triton"))))
        first, second = (np.asarray(execute(f, x, seed=seed)[0]) for seed in (0, 1))
    np.testing.assert_array_equal(first, second)
