"""On a GPU: the ops against the float64 oracle, values and gradients. Run by users with `pytest -m cuda`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import chunked_attention, complex_ema, timestep_norm
from reference import oracle_numpy as oracle
from tests import cases
from tests.tolerance import assert_close

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize("kind", cases.KINDS)
def test_complex_ema(kind):
    r = cases.rng(0)
    x, p, q, gamma, omega, h0 = map(jnp.asarray, cases.ema(r, 2, 700, 8, 4))
    tokens = cases.tokens(r, kind, 2, 700)
    y, pullback = jax.vjp(lambda x: complex_ema(x, p, q, gamma, omega, h0=h0, **tokens), x)
    dy = cases.normal(r, *x.shape)
    assert_close("y", y, oracle.complex_ema(x, p, q, gamma, omega, h0=h0, **tokens)[0])
    expected = oracle.complex_ema_vjp(x, p, q, gamma, omega, h0=h0, dy=dy, **tokens)["x"]
    assert_close("dx", pullback(jnp.asarray(dy))[0], expected)


@pytest.mark.parametrize("statistics", ["token_mean", "all_features"])
@pytest.mark.parametrize("kind", cases.KINDS)
def test_timestep_norm(kind, statistics):
    r = cases.rng(1)
    x, dy = cases.normal(r, 2, 300, 8), cases.normal(r, 2, 300, 8)
    kwargs = {"num_groups": 2, "statistics": statistics, **cases.tokens(r, kind, 2, 300)}
    y, pullback = jax.vjp(lambda x: timestep_norm(x, **kwargs), jnp.asarray(x))
    assert_close("y", y, oracle.timestep_norm(x, **kwargs)[0])
    assert_close("dx", pullback(jnp.asarray(dy))[0], oracle.timestep_norm_vjp(x, dy=dy, **kwargs)["x"], units=300)


@pytest.mark.parametrize("kind", cases.KINDS)
def test_chunked_attention(kind):
    r = cases.rng(2)
    q, k, v = (cases.normal(r, 2, 100, 2, width) for width in (16, 16, 40))
    do, kwargs = cases.normal(r, *v.shape), {"chunk_size": 32, **cases.tokens(r, kind, 2, 100)}
    o, pullback = jax.vjp(lambda *a: chunked_attention(*a, **kwargs), *map(jnp.asarray, (q, k, v)))
    assert_close("o", o, oracle.chunked_attention(q, k, v, **kwargs))
    expected = oracle.chunked_attention_vjp(q, k, v, do=do, **kwargs)
    for (name, value), gradient in zip(expected.items(), pullback(jnp.asarray(do)), strict=True):
        assert_close(name, np.asarray(gradient), value)
