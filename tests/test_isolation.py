"""Packed documents never touch each other: changing one changes no bit of another's outputs or gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import chunked_attention, complex_ema, timestep_norm
from tests import cases

LENGTH = 90
IDS = jnp.asarray(np.repeat([1, 2, 0, 3], [33, 30, 5, 22])[None].astype(np.int32))


def op(name):
    r = cases.rng(0)
    if name == "complex_ema":
        _, p, q, gamma, omega, _ = map(jnp.asarray, cases.ema(r, 1, 1, 6, 3))
        return lambda x: complex_ema(x, p, q, gamma, omega, segment_ids=IDS)
    if name == "chunked_attention":
        heads = lambda x: x.reshape(1, LENGTH, 2, 3)  # noqa: E731
        return lambda x: chunked_attention(heads(x), heads(x), heads(2 * x), chunk_size=8, segment_ids=IDS)
    return lambda x: timestep_norm(x, num_groups=2, segment_ids=IDS, statistics=name)


@pytest.mark.optimized
@pytest.mark.parametrize("name", ["complex_ema", "chunked_attention", "token_mean", "all_features"])
def test_bit_exact(name):
    r = cases.rng(1)
    x, dy = jnp.asarray(cases.normal(r, 1, LENGTH, 6)), jnp.asarray(cases.normal(r, 1, LENGTH, 6))

    @jax.jit
    def both(x):
        y, pullback = jax.vjp(op(name), x)
        return y.reshape(x.shape), pullback(dy.reshape(y.shape))[0]

    for document in (1, 2, 3):
        inside = np.asarray(IDS[0] == document)
        changed = x.at[:, inside].multiply(1e3)
        for before, after in zip(both(x), both(changed), strict=True):
            np.testing.assert_array_equal(np.asarray(before)[:, ~inside], np.asarray(after)[:, ~inside])
        assert not np.array_equal(np.asarray(both(x)[0]), np.asarray(both(changed)[0]))


# Not attention: there a masked value still meets a weight of zero, and zero times NaN is NaN.
@pytest.mark.parametrize("name", ["complex_ema", "token_mean", "all_features"])
def test_nan_does_not_leak(name):
    x = jnp.asarray(cases.normal(cases.rng(2), 1, LENGTH, 6))
    outside = np.asarray(IDS[0] != 1)
    y, pullback = jax.vjp(op(name), x.at[:, ~outside].set(jnp.nan))
    dy = jnp.where(jnp.asarray(outside)[None, :, None], 1.0, 0.0) * jnp.ones_like(y)
    assert np.isfinite(np.asarray(y)[:, outside]).all()
    assert np.isfinite(np.asarray(pullback(dy)[0])[:, outside]).all()
