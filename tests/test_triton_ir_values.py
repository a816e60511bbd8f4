"""The Triton IR interpreter: lowered kernels give the right values; what it does not know it names."""

from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from bench.inspect.triton_ir import (
    UnsupportedOperation,
    execute,
    numerics,
    run_kernel,
)
from tests.triton_toys import (
    INT,
    F,
    S,
    fma,
    kernel,
    norm64,
    normal,
    row_norm,
    rows,
    the_call,
    whole,
)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-6), (ml_dtypes.bfloat16, 2e-2)])
def test_row_norm_and_its_traffic(dtype, tolerance):
    x, w = normal(16, 64, dtype=dtype), normal(64, dtype=dtype, seed=1)
    y, [report] = execute(row_norm, x, w)
    assert y.dtype == dtype
    np.testing.assert_allclose(np.float64(y), norm64(x, w), rtol=tolerance, atol=tolerance)
    assert (report.name, report.grid, report.cells, report.faults) == ("norm_body", (4, 1, 1), 4, ())
    size = np.dtype(dtype).itemsize
    assert report.bytes_loaded == (16 * 64 + 4 * 64) * size  # the weights once per cell; the dead load not at all
    assert report.bytes_stored == 16 * 64 * size
    assert [(b.lowest, b.highest) for b in report.buffers] == [(0, 1023), (0, 63), (0, 1023)]
    assert report.operations["tt.store"] == 4


def dot(a, b, contract=0, precision=jax.lax.Precision.HIGHEST):
    dims = (((1,), (contract,)), ((), ()))
    return jax.lax.dot_general(a, b, dims, precision=precision, preferred_element_type=F)


def flash_body(q_ref, k_ref, v_ref, o_ref, *, block):
    q, start = q_ref[...], pl.program_id(0) * q_ref.shape[0]

    def step(j, carry):
        top, total, out = carry
        here = pl.ds(j * block, block)
        scores = dot(q, k_ref[here, :], 1)
        row = start + jax.lax.broadcasted_iota(INT, scores.shape, 0)
        column = j * block + jax.lax.broadcasted_iota(INT, scores.shape, 1)
        scores = jnp.where(row >= column, scores, -1e30)
        new = jnp.maximum(top, scores.max(axis=1))
        p, shrink = jnp.exp(scores - new[:, None]), jnp.exp(top - new)
        v = v_ref[here, :]
        return new, total * shrink + p.sum(axis=1), out * shrink[:, None] + dot(p.astype(v.dtype), v)

    n = q.shape[0]
    initial = (jnp.full((n,), -1e30, F), jnp.zeros((n,), F), jnp.zeros((n, v_ref.shape[1]), F))
    _, total, out = jax.lax.fori_loop(0, pl.cdiv(start + n, block), step, initial)
    o_ref[...] = (out / total[:, None]).astype(o_ref.dtype)


def flash(q, k, v):
    length, dim = q.shape
    specs = [rows(16, dim), whole(length, dim), whole(length, v.shape[1])]
    out = rows(16, v.shape[1])
    body = partial(flash_body, block=16)
    return kernel(body, S(v.shape, v.dtype), grid=(length // 16,), in_specs=specs, out_specs=out)(q, k, v)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 2e-6), (ml_dtypes.bfloat16, 2e-2)])
def test_flash_attention(dtype, tolerance):
    q, k, v = normal(64, 16, dtype=dtype), normal(64, 16, dtype=dtype, seed=1), normal(64, 32, dtype=dtype, seed=2)
    out, [report] = execute(flash, q, k, v)
    scores = np.where(np.tri(64, dtype=bool), np.matmul(np.float64(q), np.float64(k).T), -np.inf)
    p = np.exp(scores - scores.max(1, keepdims=True))
    np.testing.assert_allclose(
        np.float64(out), np.matmul(p / p.sum(1, keepdims=True), np.float64(v)), rtol=0, atol=tolerance
    )
    blocks = 1 + 2 + 3 + 4  # causal: the loop bound differs from cell to cell
    assert report.operations["tt.dot"] == 2 * blocks
    assert report.multiply_adds == blocks * 16 * 16 * (16 + 32)
    assert report.bytes_loaded == (64 * 16 + blocks * 16 * (16 + 32)) * np.dtype(dtype).itemsize


@pytest.mark.parametrize(
    ("precision", "low", "high"),
    [
        (jax.lax.Precision.HIGHEST, 0, 2e-7),
        (jax.lax.DotAlgorithmPreset.TF32_TF32_F32_X3, 0, 4e-6),
        (jax.lax.Precision.DEFAULT, 1e-4, 2e-3),  # one pass of TF32
    ],
)
def test_dot_precision(precision, low, high):
    def body(a_ref, b_ref, c_ref):
        c_ref[...] = dot(a_ref[...], b_ref[...], precision=precision)

    a, b = normal(32, 64), normal(64, 32, seed=1)
    c, _ = execute(kernel(body, S((32, 32), F)), a, b)
    exact = np.matmul(np.float64(a), np.float64(b))
    error = np.sqrt(np.mean((np.float64(c) - exact) ** 2) / np.mean(exact**2))
    assert low <= error < high


def test_integer_dot_is_exact():
    def body(a_ref, b_ref, c_ref):
        c_ref[...] = jax.lax.dot_general(a_ref[...], b_ref[...], (((1,), (0,)), ((), ())), preferred_element_type=INT)

    a, b = np.random.default_rng(0).integers(-128, 128, (2, 16, 16)).astype(np.int8)
    c, _ = execute(kernel(body, S((16, 16), INT)), a, b)
    np.testing.assert_array_equal(c, np.matmul(np.int32(a), np.int32(b)))


@pytest.mark.parametrize("axis", [0, 1])
def test_cumsum(axis):
    def body(x_ref, y_ref):
        y_ref[...] = jnp.cumsum(x_ref[...], axis=axis)

    x = normal(16, 32)
    y, _ = execute(kernel(body, S(x.shape, F)), x)
    np.testing.assert_allclose(y, np.cumsum(np.float64(x), axis), rtol=1e-5, atol=1e-5)


def test_split_and_stack():
    """Four rows taken apart with lax.split, and put together again in another order."""

    def body(x_ref, y_ref):
        a, b, c, d = (part.reshape(32) for part in jax.lax.split(x_ref[...], (1,) * 4, axis=0))
        pairs = jnp.stack([jnp.stack([d, b], axis=-1), jnp.stack([c, a], axis=-1)], axis=-1)
        y_ref[...] = pairs.reshape(32, 4).T

    x = normal(4, 32)
    y, _ = execute(kernel(body, S(x.shape, F)), x)
    np.testing.assert_array_equal(y, x[[3, 2, 1, 0]])


def exact_fma(a, b, c):
    """Rational a*b + c rounded to float32 once, to nearest even."""
    value = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
    guess = np.float32(float(value))
    candidates = [np.nextafter(guess, np.float32(-np.inf)), guess, np.nextafter(guess, np.float32(np.inf))]
    return min(candidates, key=lambda f: (abs(Fraction(float(f)) - value), int(f.view(np.int32)) & 1))


def test_fma_rounds_once():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 2000)).astype(np.float32)
    c = (-np.float64(a) * b * (1 + rng.choice([0, 1e-7, 1e-3, 1], 2000))).astype(np.float32)  # cancellation
    tie = np.float32(1 + 2**-12)  # tie * tie = 1 + 2^-11 + 2^-24: half-way between two float32 numbers
    tiny = np.float32(2.0**-149)
    half = np.float32(2.0**-75)
    a = np.concatenate([a, np.float32([tie, tie, -tie, tie, half, half, 3 * half, 1.5])])
    b = np.concatenate([b, np.float32([tie, tie, tie, tie, half, half, half, 2.0**-149])])
    c = np.concatenate([c, np.float32([tiny, -tiny, tiny, 0, tiny, -tiny, -tiny, 2.0**-126])])
    expected = np.array([exact_fma(*abc) for abc in zip(a, b, c, strict=True)])
    np.testing.assert_array_equal(numerics.fma(a, b, c), expected)
    twice = (np.float64(a) * b + c).astype(np.float32)
    assert (twice != expected).any()  # the data can tell one rounding from two
    assert all(numerics.fma(*abc) == e for *abc, e in zip(a[-8:], b[-8:], c[-8:], expected[-8:], strict=True))


def test_fma_of_infinities_and_nan():
    a = np.float32([np.inf, np.inf, np.nan, 3e38, 1, 0])
    b = np.float32([1, 0, 1, 3e38, -0.0, 5])
    c = np.float32([-np.inf, 1, 1, 0, 0, np.inf])
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(numerics.fma(a, b, c), np.float32([np.nan, np.nan, np.nan, np.inf, 0, np.inf]))


def test_fma_recurrence_in_a_loop():
    def body(x_ref, q_ref, y_ref):
        q = q_ref[:]

        def step(t, h):
            h = fma(h, q, x_ref[t, :])
            y_ref[t, :] = h
            return h

        jax.lax.fori_loop(0, x_ref.shape[0], step, jnp.zeros((32,), F))

    x, q = normal(10, 32), normal(32, seed=1) * np.float32(0.5)
    y, _ = execute(kernel(body, S(x.shape, F)), x, q)
    h = np.zeros(32, np.float32)
    for t in range(10):
        h = numerics.fma(h, q, x[t])
        np.testing.assert_array_equal(y[t], h)


def test_elementwise_operations_and_casts():
    def body(x_ref, n_ref, f_ref, i_ref, b_ref):
        x, n = x_ref[...], n_ref[...]
        m = jnp.where(n == 0, 1, n)
        f_ref[...] = jnp.tanh(x) + jax.nn.sigmoid(x) + jnp.exp2(x) + jnp.log1p(x * x) + n.astype(F) + jnp.clip(x, -1, 1)
        i_ref[...] = (
            (x * 100).astype(INT) // m + n % m + (n << 2) + (n >> 1) + (n & 5) + (n ^ 3) + abs(n) - jnp.minimum(n, 3)
        )
        b_ref[...] = (x > 0) & (n != 2) | jnp.isnan(x)

    x, n = normal(64), np.random.default_rng(1).integers(-9, 10, 64).astype(np.int32)
    x[0] = np.nan
    shapes = (S((64,), F), S((64,), INT), S((64,), jnp.bool_))
    (f, i, b), _ = execute(kernel(body, shapes), x, n)
    m = np.where(n == 0, 1, n)
    x64 = np.float64(x)
    wanted = np.tanh(x64) + 1 / (1 + np.exp(-x64)) + np.exp2(x64) + np.log1p(x64 * x64) + n + np.clip(x64, -1, 1)
    np.testing.assert_allclose(f, wanted, rtol=2e-6, atol=2e-6)
    scaled = np.nan_to_num(np.trunc(x * np.float32(100))).astype(np.int64)
    integers = scaled // m + n % m + (n << 2) + (n >> 1) + (n & 5) + (n ^ 3) + abs(n) - np.minimum(n, 3)
    np.testing.assert_array_equal(i, integers)
    np.testing.assert_array_equal(b, (x > 0) & (n != 2) | np.isnan(x))


def test_unsigned_integers_wrap():
    def body(x_ref, y_ref):
        x = x_ref[...] * jnp.uint32(2654435761)
        y_ref[...] = (x ^ (x >> jnp.uint32(16))) // jnp.uint32(3)

    x = np.arange(2**32 - 32, 2**32, dtype=np.uint32)
    y, _ = execute(kernel(body, S(x.shape, jnp.uint32)), x)
    h = x * np.uint32(2654435761)
    np.testing.assert_array_equal(y, (h ^ (h >> 16)) // 3)


def test_branches_while_loops_and_argmax():
    def body(x_ref, y_ref, i_ref):
        x = x_ref[...]
        i_ref[0] = jnp.argmax(x).astype(INT)
        x = jax.lax.cond(jnp.sum(x) > 0, lambda v: v * 2, lambda v: v - 1, x)
        y_ref[...] = jax.lax.while_loop(lambda v: jnp.max(v) > 1, lambda v: v * 0.5, x)

    for sign in (1, -1):
        x = sign * np.abs(normal(32))
        (y, i), _ = execute(kernel(body, (S((32,), F), S((1,), INT))), x)
        wanted = x * 2 if x.sum() > 0 else x - 1
        while wanted.max() > 1:
            wanted = wanted * np.float32(0.5)
        np.testing.assert_array_equal(y, wanted)
        assert i[0] == x.argmax()


def test_unknown_operation_is_named():
    def body(x_ref, y_ref):
        plt.atomic_add(y_ref, (pl.ds(0, 32),), x_ref[...])

    with pytest.raises(UnsupportedOperation, match=r"tt\.atomic_rmw"):
        execute(kernel(body, S((32,), F), input_output_aliases={0: 0}), normal(32))


def test_unknown_assembly_is_named():
    def body(x_ref, y_ref):
        [y] = plt.elementwise_inline_asm(
            "sin.approx.f32 $0, $1;",
            args=[x_ref[...]],
            constraints="=f,f",
            pack=1,
            result_shape_dtypes=[S((32,), F)],
        )
        y_ref[...] = y

    with pytest.raises(UnsupportedOperation, match=r"sin\.approx\.f32"):
        execute(kernel(body, S((32,), F)), normal(32))


def test_shuffled_order_is_reproducible():
    """With a race the last cell wins, which makes the order visible."""

    def body(x_ref, y_ref):
        y_ref[...] = x_ref[...] + pl.program_id(0).astype(F)

    spec = whole(16)
    race = kernel(body, S((16,), F), grid=(50,), in_specs=[spec], out_specs=spec)
    call = the_call(race, S((16,), F))
    last = [run_kernel(call, [np.zeros(16, np.float32)], seed=s, collect=True)[0][0][0] for s in (0, 0, 1, 2)]
    assert last[0] == last[1]
    assert len(set(last)) > 1
    sequential, _ = run_kernel(call, [np.zeros(16, np.float32)], order="sequential", collect=True)
    assert sequential[0][0] == 49
    with pytest.raises(ValueError, match="each of the 50 grid cells once"):
        run_kernel(call, [np.zeros(16, np.float32)], order=[0, 1])
    with pytest.raises(ValueError, match="expected operands"):
        run_kernel(call, [np.zeros(8, np.float32)])
