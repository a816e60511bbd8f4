"""complex_ema against the float64 oracle: values, states, every gradient, hard coefficients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import complex_ema
from reference import oracle_numpy as oracle
from tests import cases
from tests.tolerance import assert_close, errors

NAMES = ("x", "p", "q", "gamma", "omega", "h0")


def run(x, p, q, gamma, omega, h0, **tokens):
    return complex_ema(x, p, q, gamma, omega, h0=h0, return_state=True, **tokens)


def check(arrays, tokens, seed=0, units=100.0):
    """Forward, state and all gradients with random cotangents, against the oracle."""
    x, p, q, gamma, omega, h0 = arrays
    (y, h), pullback = jax.vjp(lambda *a: run(*a, **tokens), *map(jnp.asarray, arrays))
    truth_y, truth_h = oracle.complex_ema(x, p, q, gamma, omega, h0=h0, **tokens)
    assert_close("y", y, truth_y, units=units)
    assert_close("h", h, truth_h, units=units)
    r = cases.rng(seed + 1)
    dy, dh = cases.normal(r, *x.shape), cases.complex_normal(r, *h0.shape)
    # The oracle's cotangents follow PyTorch's convention; JAX's are the conjugates.
    gradients = pullback((jnp.asarray(dy), jnp.asarray(np.conj(dh))))
    truth = oracle.complex_ema_vjp(x, p, q, gamma, omega, h0=h0, dy=dy, dh=dh, **tokens)
    for name, gradient in zip(NAMES, gradients, strict=True):
        assert np.isfinite(np.asarray(gradient)).all(), name
        assert_close(f"d{name}", np.conj(gradient), truth[name], units=units)


@pytest.mark.optimized
@pytest.mark.parametrize("kind", cases.KINDS)
@pytest.mark.parametrize("length", [1, 2, 32, 67, pytest.param(1100, marks=pytest.mark.thorough)])
def test_values_and_gradients(length, kind):
    r = cases.rng(length)
    check(cases.ema(r, 2, length, 3, 4), cases.tokens(r, kind, 2, length))


@pytest.mark.parametrize("states", [1, 5, 16])
def test_any_number_of_states(states):
    check(cases.ema(cases.rng(states), 1, 70, 2, states), {})


HARD = {
    "zero": 0.0,
    "real": 0.9,
    "negative": -0.95,
    "tiny imaginary part": 0.9 + 1e-12j,
    "imaginary": 0.8j,
    "nearly one": 0.99999,
    "nearly one, rotating": 0.99999 * np.exp(0.3j),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", HARD)
def test_hard_coefficients(name, packed):
    r = cases.rng(3)
    x, p, q, gamma, omega, h0 = cases.ema(r, 2, 100, 3, 2)
    q = np.full_like(q, HARD[name])
    p[0] = 0.0
    check((x, p, q, gamma, omega, h0), cases.tokens(r, "segments", 2, 100) if packed else {})


@pytest.mark.optimized
@pytest.mark.parametrize("kind", ["plain", "segments"])
def test_long_memory_does_not_lose_accuracy(kind):
    """|q| up to 0.99999 over 65536 steps; long decays amplify rounding by the length of the memory at most."""
    r = cases.rng(5)
    length = 65536
    arrays = cases.ema(r, 1, length, 2, 3, low=0.9995, high=0.99999)
    tokens = {}
    if kind == "segments":
        ids = np.ones((1, length), np.int32)
        ids[:, length // 3 :] = 2
        tokens = {"segment_ids": jnp.asarray(ids)}
    x, p, q, gamma, omega, h0 = arrays
    y, h = run(*map(jnp.asarray, arrays), **tokens)
    truth_y, truth_h = oracle.complex_ema(x, p, q, gamma, omega, h0=h0, **tokens)
    assert_close("y", y, truth_y)
    assert_close("h", h, truth_h)
    # The same kernel as exp(j log q) and one FFT, the way existing code does it, is much worse here.
    if kind == "plain":
        fft = _fft_form(jnp.asarray(x), *map(jnp.asarray, (p, q, gamma)))
        truth, _ = oracle.complex_ema(x, p, q, gamma)
        plain = complex_ema(*map(jnp.asarray, (x, p, q, gamma)))
        assert errors(plain, truth)[0] * 10 < errors(fft, truth)[0]


def _fft_form(x, p, q, gamma):
    length = x.shape[1]
    steps = jnp.arange(length, dtype=jnp.float32)
    powers = jnp.exp(jnp.log(q)[..., None] * steps.astype(jnp.complex64))
    kernel = jnp.sum(jnp.real((gamma * p.astype(jnp.complex64))[..., None] * powers), 1)
    spectrum = jnp.fft.rfft(x, 2 * length, axis=1) * jnp.fft.rfft(kernel.T, 2 * length, axis=0)
    return jnp.fft.irfft(spectrum, 2 * length, axis=1)[:, :length]


def test_bfloat16_is_the_float32_result_rounded_once():
    r = cases.rng(7)
    x, *rest = map(jnp.asarray, cases.ema(r, 2, 50, 3, 4))
    y = complex_ema(x.astype(jnp.bfloat16), *rest[:-1])
    exact = complex_ema(x.astype(jnp.bfloat16).astype(jnp.float32), *rest[:-1])
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(y), np.asarray(exact.astype(jnp.bfloat16)))


def test_mask_keeps_decaying_and_still_emits():
    x, p, q, gamma, omega, h0 = map(jnp.asarray, cases.ema(cases.rng(2), 1, 6, 2, 3))
    mask = jnp.zeros((1, 6), bool)
    y, h = run(x, p, q, gamma, omega, h0, mask=mask)
    assert_close("h", h, np.asarray(q) ** 6 * np.asarray(h0))
    assert np.abs(np.asarray(y)).min() > 0


@pytest.mark.parametrize("kind", ["mask", "segments"])
def test_masked_inputs_may_hold_anything(kind):
    r = cases.rng(4)
    arrays = cases.ema(r, 2, 80, 3, 2)
    tokens = cases.tokens(r, kind, 2, 80)
    valid = np.asarray(tokens["mask"] & (tokens.get("segment_ids", jnp.ones((2, 80), jnp.int32)) != 0))
    poisoned = np.where(valid[..., None], arrays[0], np.nan).astype(np.float32)

    def gradients(x):
        loss = lambda x, *a: jnp.sum(run(x, *a, **tokens)[0])  # noqa: E731
        return jax.value_and_grad(loss, argnums=(0, 1, 2))(jnp.asarray(x), *map(jnp.asarray, arrays[1:]))

    for clean, dirty in zip(*map(jax.tree.leaves, (gradients(arrays[0]), gradients(poisoned))), strict=True):
        np.testing.assert_array_equal(np.asarray(clean), np.asarray(dirty))


def test_packed_equals_documents_one_by_one():
    r = cases.rng(8)
    x, p, q, gamma, omega, h0 = map(jnp.asarray, cases.ema(r, 1, 150, 3, 2))
    lengths = (40, 70, 40)
    ids = jnp.asarray(np.repeat([4, 1, 4], lengths)[None].astype(np.int32))
    y, h = run(x, p, q, gamma, omega, h0, segment_ids=ids)
    start, state, final = 0, h0, h0
    for length in lengths:
        alone, state = run(x[:, start : start + length], p, q, gamma, omega, state)
        assert_close("document", y[:, start : start + length], alone)
        start += length
        final, state = state, jnp.zeros_like(h0)
    assert_close("h", h, final)


def test_state_is_that_after_the_last_valid_token():
    x, p, q, gamma, omega, h0 = map(jnp.asarray, cases.ema(cases.rng(9), 2, 10, 3, 2))
    ids = jnp.asarray([[1] * 6 + [0] * 4, [0] * 10], jnp.int32)
    _, h = run(x, p, q, gamma, omega, h0, segment_ids=ids)
    _, expected = run(x[:1, :6], p, q, gamma, omega, h0[:1])
    assert_close("after six tokens", h[:1], expected)
    np.testing.assert_array_equal(np.asarray(h[1]), np.asarray(h0[1]))


def test_jvp_and_second_derivatives():
    """The reference supports forward mode and higher derivatives, which a kernel cannot."""
    x, p, q, gamma, omega, _ = map(jnp.asarray, cases.ema(cases.rng(10), 1, 40, 2, 2))
    loss = lambda x, p: jnp.sum(complex_ema(x, p, q, gamma, omega) ** 2)  # noqa: E731
    tangent = jnp.asarray(cases.normal(cases.rng(11), *p.shape))
    _, forward = jax.jvp(lambda p: loss(x, p), (p,), (tangent,))
    gradient = jax.grad(loss, 1)(x, p)
    assert_close("jvp", forward, jnp.vdot(gradient, tangent))
    hessian_product = jax.jvp(lambda p: jax.grad(loss, 1)(x, p), (p,), (tangent,))[1]
    # The loss is quadratic in p: the gradient is linear, and a finite difference of it is exact up to rounding.
    assert_close("hvp", hessian_product, jax.grad(loss, 1)(x, p + tangent) - gradient, units=1000)


def test_vmap_and_scan_and_remat():
    x, p, q, gamma, omega, _ = map(jnp.asarray, cases.ema(cases.rng(12), 2, 40, 2, 2))
    op = lambda x: complex_ema(x, p, q, gamma, omega)  # noqa: E731
    mapped = jax.vmap(op)(jnp.stack([x, 2 * x]))
    assert_close("vmap", mapped[1], 2 * op(x))
    layers = lambda x: jax.lax.scan(lambda a, _: (jax.checkpoint(op)(a), None), x, None, length=2)[0]  # noqa: E731
    assert_close("scan", layers(x), op(op(x)))
    g = jax.jit(jax.grad(lambda x: jnp.sum(layers(x) ** 2)))(x)
    assert_close("gradient", g, jax.grad(lambda x: jnp.sum(op(op(x)) ** 2))(x))
