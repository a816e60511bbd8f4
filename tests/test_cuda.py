"""On a GPU, run by users with `pytest -m cuda`: kernels and reference against the oracles, determinism, the model.

The TimestepNorm tests are those of `test_norm_kernels.py` on another rung; `test_the_lanes_have_the_same_tests` runs
everywhere and keeps the two from drifting apart.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bench import ops, parity
from pallas_kernels import chunked_attention, complex_ema, kernels_in, timestep_norm
from pallas_kernels.timestep_norm.specs import PRESETS
from reference import oracle_numpy as oracle
from tests import cases, norm_laws, norm_parity, test_norm_kernels
from tests.tolerance import assert_close

cuda = pytest.mark.cuda


@cuda
@pytest.mark.parametrize("spec", norm_parity.SPECS, ids=norm_parity.IDS)
def test_timestep_norm(spec):
    norm_parity.check(spec, "triton")


@cuda
@pytest.mark.parametrize("spec", PRESETS, ids=str)
def test_timestep_norm_at_full_size(spec):
    norm_parity.check(spec, "triton")


def test_the_lanes_have_the_same_tests():
    def ids(test):
        (mark,) = (mark for mark in test.pytestmark if mark.name == "parametrize")
        return set(mark.kwargs["ids"]), len(mark.args[1])

    lanes = [ids(t) for t in (test_timestep_norm, test_norm_kernels.test_interpreted, test_norm_kernels.test_lowered)]
    assert lanes[0] == lanes[1] == lanes[2]
    assert len(lanes[0][0]) == lanes[0][1] > 20


@cuda
@pytest.mark.parametrize("spec", norm_parity.SPECS, ids=norm_parity.IDS)
def test_twice_is_bit_equal(spec):
    arrays = ops.of(spec).inputs(spec)
    first, second = (parity.evaluate(spec, arrays, "triton") for _ in range(2))
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


@cuda
@pytest.mark.parametrize("statistics", norm_laws.STATISTICS)
@pytest.mark.parametrize("chunks", norm_laws.CHUNKS)
def test_documents_never_touch(statistics, chunks):
    norm_laws.check_isolation("triton", statistics, chunks)


@cuda
@pytest.mark.parametrize("statistics", norm_laws.STATISTICS)
def test_no_token_depends_on_a_later_one(statistics):
    norm_laws.check_causality("triton", statistics)


@cuda
def test_masked_values_may_be_anything_where_they_give_nothing():
    norm_laws.check_masked_values("triton")


@cuda
@pytest.mark.parametrize("tiles", norm_laws.LAUNCH_SHAPES)
def test_every_launch_shape_gives_the_same(tiles):
    norm_laws.check_launch_shape("triton", tiles)


@cuda
def test_the_best_implementation_is_the_kernel():
    x = jnp.ones((2, 64, 32))
    assert "timestep_norm_forward" in kernels_in(jax.jit(lambda x: timestep_norm(x, num_groups=4)).lower(x).compile())


@cuda
@pytest.mark.parametrize("dtype", norm_parity.MODEL_DTYPES)
def test_model_with_kernels_on_and_off(dtype):
    norm_parity.check_model(dtype, "triton")


@cuda
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


@cuda
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
