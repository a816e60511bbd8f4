"""timestep_norm against the float64 oracle: values, states, gradients, large means, long sequences, isolation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import timestep_norm
from reference import oracle_numpy as oracle
from tests import cases
from tests.tolerance import assert_close, errors

STATISTICS = ("token_mean", "all_features")
GROUPS = 4


def inputs(r, length, *, batch=2, features=12):
    x = cases.normal(r, batch, length, features)
    return x, cases.normal(r, features), cases.normal(r, features), cases.norm_state(r, batch, GROUPS)


def run(x, weight, bias, state, **kwargs):
    return timestep_norm(x, weight, bias, num_groups=GROUPS, state=state, return_state=True, **kwargs)


@pytest.mark.parametrize("statistics", STATISTICS)
@pytest.mark.parametrize("kind", cases.KINDS)
@pytest.mark.parametrize("length", [1, 45])
def test_values_and_gradients(length, kind, statistics):
    r = cases.rng(length)
    x, weight, bias, (count, mean, var) = inputs(r, length)
    kwargs = {"statistics": statistics, **cases.tokens(r, kind, 2, length)}
    count = jnp.asarray(count)

    def forward(x, weight, bias, mean, var):
        y, (new_count, new_mean, new_var) = run(x, weight, bias, (count, mean, var), **kwargs)
        return (y, new_mean, new_var), new_count

    (y, new_mean, new_var), pullback, new_count = jax.vjp(
        forward, *map(jnp.asarray, (x, weight, bias, mean, var)), has_aux=True
    )
    shared = {"num_groups": GROUPS, "state": (count, mean, var), **kwargs}
    truth, state = oracle.timestep_norm(x, weight, bias, **shared)
    assert_close("y", y, truth)
    np.testing.assert_array_equal(np.asarray(new_count), state[0])
    assert_close("mean", new_mean, state[1])
    assert_close("var", new_var, state[2])
    dy, dmean, dvar = (cases.normal(r, *a.shape) for a in (x, mean, var))
    gradients = pullback(tuple(map(jnp.asarray, (dy, dmean, dvar))))
    expected = oracle.timestep_norm_vjp(x, weight, bias, dy=dy, dmean=dmean, dvar=dvar, **shared)
    # A masked first token of an empty prior is divided by sqrt(var + eps) of a tiny sample: give gradients some room.
    for (name, value), gradient in zip(expected.items(), gradients, strict=True):
        assert_close(f"d{name}", gradient, value, units=300)


@pytest.mark.parametrize("statistics", STATISTICS)
def test_oracle_adjoint_is_the_derivative(statistics):
    """The oracle's own backward against central differences of its forward, in float64."""
    r = cases.rng(1)
    x, weight, bias, (count, mean, var) = inputs(r, 12)
    tokens = cases.tokens(r, "segments", 2, 12)
    arrays = {"x": x, "weight": weight, "bias": bias, "mean": mean, "var": var}
    dy, dmean, dvar = (cases.normal(r, *a.shape) for a in (x, mean, var))

    def loss(a):
        y, (_, m, v) = oracle.timestep_norm(
            a["x"], a["weight"], a["bias"], num_groups=GROUPS, state=(count, a["mean"], a["var"]),
            statistics=statistics, **tokens,
        )  # fmt: skip
        return (y * dy).sum() + (m * dmean).sum() + (v * dvar).sum()

    gradients = oracle.timestep_norm_vjp(
        x, weight, bias, num_groups=GROUPS, state=(count, mean, var), statistics=statistics,
        dy=dy, dmean=dmean, dvar=dvar, **tokens,
    )  # fmt: skip
    for name, array in arrays.items():
        direction = r.normal(size=array.shape)
        step = 1e-5
        up, down = (loss({**arrays, name: array + sign * step * direction}) for sign in (1, -1))
        np.testing.assert_allclose((up - down) / (2 * step), (gradients[name] * direction).sum(), rtol=1e-6)


@pytest.mark.parametrize("statistics", STATISTICS)
@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_large_mean_does_not_cancel(mean, statistics):
    r = cases.rng(2)
    x = cases.normal(r, 1, 4096, 8) + np.float32(mean)
    y = timestep_norm(jnp.asarray(x), num_groups=2, statistics=statistics)
    truth, _ = oracle.timestep_norm(x, num_groups=2, statistics=statistics)
    # x itself carries mean * eps of rounding against a spread of one.
    assert_close("y", y, truth, units=100 * (1 + mean / 10))
    if mean and statistics == "all_features":
        naive = _sum_of_squares(jnp.asarray(x), 2)
        assert errors(y, truth)[0] * 10 < errors(naive, truth)[0]


def _sum_of_squares(x, groups):
    """What must not be done: mean of squares minus square of the mean."""
    g = x.reshape(*x.shape[:2], groups, -1)
    n = jnp.arange(1, x.shape[1] + 1, dtype=jnp.float32)[None, :, None]
    mean = jnp.cumsum(g.mean(-1), 1) / n
    var = jnp.cumsum((g**2).mean(-1), 1) / n - mean**2
    return ((g - mean[..., None]) * jax.lax.rsqrt(var + 1e-5)[..., None]).reshape(x.shape)


@pytest.mark.optimized
@pytest.mark.parametrize("statistics", STATISTICS)
def test_long_sequence(statistics):
    """65536 steps with a drifting mean."""
    r = cases.rng(3)
    length = 65536
    drift = np.linspace(0, 30, length, dtype=np.float32)[None, :, None]
    x = cases.normal(r, 1, length, 4) + drift
    y, state = timestep_norm(jnp.asarray(x), num_groups=2, statistics=statistics, return_state=True)
    truth, true_state = oracle.timestep_norm(x, num_groups=2, statistics=statistics)
    assert_close("y", y, truth)
    assert_close("mean", state[1], true_state[1])
    assert_close("var", state[2], true_state[2])


def test_constant_input_hits_the_floor_and_stays_finite():
    x = jnp.full((1, 50, 4), 3.0)
    state = (jnp.array([10], jnp.int32), jnp.full((1, 2), 3.0), jnp.zeros((1, 2)))
    f = lambda x: timestep_norm(x, num_groups=2, state=state)  # noqa: E731
    y, pullback = jax.vjp(f, x)
    assert_close("y", y, np.zeros(y.shape))
    assert np.isfinite(np.asarray(pullback(jnp.ones_like(y))[0])).all()


@pytest.mark.parametrize("statistics", STATISTICS)
@pytest.mark.parametrize("cut", [1, 32])
def test_split_invariance(cut, statistics):
    r = cases.rng(cut)
    x, weight, bias, state = inputs(r, 60)
    x, weight, bias = map(jnp.asarray, (x, weight, bias))
    state = tuple(map(jnp.asarray, state))
    whole, end = run(x, weight, bias, state, statistics=statistics)
    first, middle = run(x[:, :cut], weight, bias, state, statistics=statistics)
    second, last = run(x[:, cut:], weight, bias, middle, statistics=statistics)
    assert_close("y", jnp.concatenate([first, second], 1), whole)
    for name, a, b in zip(("count", "mean", "var"), last, end, strict=True):
        assert_close(name, a, b)


def test_masked_positions():
    """token_mean normalises them with the statistics as they stand; all_features gives 0; neither counts them."""
    r = cases.rng(6)
    x, weight, bias, state = inputs(r, 9)
    state = tuple(map(jnp.asarray, state))
    mask = jnp.asarray(np.arange(9) != 4)[None].repeat(2, 0)
    for statistics in STATISTICS:
        y, (count, *_) = run(*map(jnp.asarray, (x, weight, bias)), state, mask=mask, statistics=statistics)
        np.testing.assert_array_equal(np.asarray(count), np.asarray(state[0]) + 8)
        assert bool(jnp.all(y[:, 4] == 0)) == (statistics == "all_features")


def test_bfloat16():
    x, weight, bias, _ = inputs(cases.rng(7), 40)
    low = jnp.asarray(x).astype(jnp.bfloat16)
    y = timestep_norm(low, jnp.asarray(weight), jnp.asarray(bias), num_groups=GROUPS)
    truth, _ = oracle.timestep_norm(np.asarray(low.astype(jnp.float32)), weight, bias, num_groups=GROUPS)
    assert y.dtype == jnp.bfloat16
    assert_close("y", y.astype(jnp.float32), truth, dtype="bfloat16", units=1)


def test_jvp_and_second_derivatives():
    x, weight, bias, _ = inputs(cases.rng(8), 10)
    f = lambda x: jnp.sum(timestep_norm(x, jnp.asarray(weight), jnp.asarray(bias), num_groups=GROUPS) ** 3)  # noqa: E731
    tangent = jnp.asarray(cases.normal(cases.rng(9), *x.shape))
    _, forward = jax.jvp(f, (jnp.asarray(x),), (tangent,))
    assert_close("jvp", forward, jnp.vdot(jax.grad(f)(jnp.asarray(x)), tangent))
    assert np.isfinite(np.asarray(jax.jvp(jax.grad(f), (jnp.asarray(x),), (tangent,))[1])).all()
