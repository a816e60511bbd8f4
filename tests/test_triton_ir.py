"""The Triton IR interpreter: lowered kernels give the right values, and each seeded fault is caught and named."""

from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from bench.inspect.lowering import lower, triton_calls
from bench.inspect.triton_ir import (
    FaultKind,
    KernelFault,
    UnsupportedOperation,
    check_addresses,
    execute,
    numerics,
    run_kernel,
)

S = jax.ShapeDtypeStruct
F, INT = jnp.float32, jnp.int32
PARAMS = plt.CompilerParams(num_warps=2, num_stages=1)


def on_gpu(bind):
    """Run a pallas_call bind as jax >= 0.11 wants it where there is no GPU; older releases need nothing."""
    if not hasattr(jax.sharding, "AbstractDevice"):
        return bind()
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H100", num_cores=None, platform="cuda")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("_",), abstract_device=device)):
        return bind()


def kernel(body, out_shape, *, interpret=False, **kwargs):
    call = pl.pallas_call(body, out_shape=out_shape, compiler_params=PARAMS, interpret=interpret, **kwargs)
    return (lambda *args: call(*args)) if interpret else (lambda *args: on_gpu(lambda: call(*args)))


def whole(*shape):
    return pl.BlockSpec(shape, lambda *_: (0,) * len(shape))


def rows(n, *rest):
    return pl.BlockSpec((n, *rest), lambda i, *_: (i, *(0,) * len(rest)))


def the_call(function, *avals):
    [call] = triton_calls(lower(function, *avals))
    return call


def normal(*shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def fault_of(function, *arrays):
    with pytest.raises(KernelFault) as caught:
        execute(function, *arrays)
    return caught.value.fault


def fma(a, b, c):
    shape = S(a.shape, F)
    asm = "fma.rn.f32 $0, $1, $2, $3;"
    [result] = plt.elementwise_inline_asm(
        asm, args=[a, b, c], constraints="=f,f,f,f", pack=1, result_shape_dtypes=[shape]
    )
    return result


def norm_body(x_ref, w_ref, y_ref):
    x = x_ref[...].astype(F)
    centred = x - jnp.mean(x, axis=1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.mean(centred * centred, axis=1, keepdims=True) + 1e-5)
    y_ref[...] = (centred * scale * w_ref[...].astype(F)[None, :]).astype(y_ref.dtype)


def row_norm(x, w):
    specs = [rows(4, x.shape[1]), whole(w.shape[0])]
    return kernel(norm_body, S(x.shape, x.dtype), grid=(x.shape[0] // 4,), in_specs=specs, out_specs=specs[0])(x, w)


def norm64(x, w):
    x, w = np.float64(x), np.float64(w)
    centred = x - x.mean(1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5) * w


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


def masked_copy(x, length, *, mask_load=True, mask_store=True, block=64):
    """Copy by blocks that do not divide the length, with masks of our own."""

    def body(x_ref, y_ref):
        at = pl.program_id(0) * block
        inside = at + jnp.arange(block) < length
        tile = plt.load(x_ref.at[pl.ds(at, block)], mask=inside if mask_load else None, other=0 if mask_load else None)
        plt.store(y_ref.at[pl.ds(at, block)], tile, mask=inside if mask_store else None)

    spec = whole(length)
    return kernel(body, S((length,), F), grid=(pl.cdiv(length, block),), in_specs=[spec], out_specs=spec)(x)


def test_ragged_tail_with_masks():
    x = normal(100)
    y, [report] = execute(lambda x: masked_copy(x, 100), x)
    np.testing.assert_array_equal(y, x)
    assert (report.bytes_loaded, report.bytes_stored) == (400, 400)  # masked lanes do not count


def test_missing_mask_on_a_ragged_tail():
    x = normal(100)
    fault = fault_of(lambda x: masked_copy(x, 100, mask_store=False), x)
    assert fault.kind == FaultKind.OUT_OF_BOUNDS_STORE
    assert fault.cell == (1, 0, 0)
    assert "64..127 of result 0 float32[100]" in fault.detail
    assert "test_triton_ir.py" in fault.where
    assert fault_of(lambda x: masked_copy(x, 100, mask_load=False), x).kind == FaultKind.OUT_OF_BOUNDS_LOAD


def test_masked_lanes_without_other_are_poison():
    def body(x_ref, y_ref):
        y_ref[...] = plt.load(x_ref.at[pl.ds(0, 32)], mask=jnp.arange(32) < 20)

    y, _ = execute(kernel(body, S((32,), F)), normal(32))
    assert np.isnan(np.asarray(y)).tolist() == [False] * 20 + [True] * 12


def test_dynamic_slice_past_the_end_which_interpret_mode_clamps():
    def body(start_ref, x_ref, y_ref):
        y_ref[...] = x_ref[pl.ds(start_ref[0], 64)]

    start, x = np.int32([64]), normal(100)
    clamped = kernel(body, S((64,), F), interpret=True)(start, x)
    np.testing.assert_array_equal(clamped, x[36:])  # silently other elements than were asked for
    fault = fault_of(kernel(body, S((64,), F)), start, x)
    assert fault.kind == FaultKind.OUT_OF_BOUNDS_LOAD
    assert "64..127 of operand 1" in fault.detail
    y, _ = execute(kernel(body, S((64,), F)), np.int32([36]), x)
    np.testing.assert_array_equal(y, x[36:])


def test_two_cells_writing_one_block():
    def body(x_ref, y_ref):
        y_ref[...] = x_ref[...] + pl.program_id(0).astype(F)

    spec = whole(32)
    race = kernel(body, S((32,), F), grid=(2,), in_specs=[spec], out_specs=spec)
    assert fault_of(race, normal(32)).kind == FaultKind.WRITE_RACE
    _, [report] = execute(race, normal(32), collect=True)
    assert [fault.kind for fault in report.faults] == [FaultKind.WRITE_RACE]
    assert "32 elements of result 0" in report.faults[0].detail


def neighbour_body(x_ref, y_ref):
    """Each cell adds its left neighbour's block to its own; the array is updated in place."""
    i = pl.program_id(0)
    left = x_ref[pl.ds(jnp.maximum(i - 1, 0) * 32, 32)]
    y_ref[pl.ds(i * 32, 32)] = left + 1


@pytest.mark.parametrize("order", ["sequential", (2, 1, 0), (1, 2, 0)])
def test_reading_what_another_cell_writes(order):
    spec = whole(96)
    options = {"grid": (3,), "in_specs": [spec], "out_specs": spec}
    in_place = kernel(neighbour_body, S((96,), F), input_output_aliases={0: 0}, **options)
    call = the_call(in_place, S((96,), F))
    assert call.aliases == {0: 0}
    with pytest.raises(KernelFault) as caught:
        run_kernel(call, [normal(96)], order=order)
    assert caught.value.fault.kind == FaultKind.READ_WRITE_RACE
    two_arrays = the_call(kernel(neighbour_body, S((96,), F), **options), S((96,), F))
    _, report = run_kernel(two_arrays, [normal(96)], order=order)
    assert report.faults == ()


def test_aliased_result_keeps_what_is_not_written():
    def body(x_ref, y_ref):
        y_ref[pl.ds(0, 32)] = x_ref[pl.ds(0, 32)] * 2

    x = normal(64)
    y, [report] = execute(kernel(body, S((64,), F), input_output_aliases={0: 0}), x)
    np.testing.assert_array_equal(y, np.concatenate([x[:32] * 2, x[32:]]))
    assert len(report.buffers) == 1


def test_missing_store():
    def body(x_ref, y_ref):
        @pl.when(pl.program_id(0) != 1)
        def _():
            y_ref[...] = x_ref[...]

    spec = rows(32)
    call = kernel(body, S((96,), F), grid=(3,), in_specs=[spec], out_specs=spec)
    fault = fault_of(call, normal(96))
    assert (fault.kind, fault.cell) == (FaultKind.UNWRITTEN_OUTPUT, None)
    assert fault.detail.startswith("32 of 96 elements of result 0")
    y, _ = execute(call, normal(96), collect=True)
    assert np.isnan(np.asarray(y)).tolist() == [False] * 32 + [True] * 32 + [False] * 32


def test_uninitialised_read():
    def body(x_ref, y_ref):
        y_ref[...] += x_ref[...]

    assert fault_of(kernel(body, S((32,), F)), normal(32)).kind == FaultKind.UNINITIALISED_READ


def test_duplicate_addresses_in_one_store():
    def body(i_ref, y_ref):
        y_ref[i_ref[...]] = jnp.arange(32)

    scatter = kernel(body, S((32,), INT))
    places = np.random.default_rng(0).permutation(32).astype(np.int32)
    y, _ = execute(scatter, places)
    np.testing.assert_array_equal(y, np.argsort(places))
    places[3] = places[7]
    fault = fault_of(scatter, places)
    assert fault.kind == FaultKind.DUPLICATE_ADDRESS
    assert f"the first at offset {places[7]}" in fault.detail


def test_store_to_an_input():
    def body(x_ref, y_ref):
        y_ref[...] = x_ref[...]
        x_ref[...] = jnp.zeros((32,), F)

    assert fault_of(kernel(body, S((32,), F)), normal(32)).kind == FaultKind.STORE_TO_INPUT


def big_copy(dtype, length):
    def body(x_ref, y_ref):
        y_ref[...] = x_ref[...]

    spec = rows(4096)
    aval = S((length,), dtype)
    return the_call(kernel(body, aval, grid=(length // 4096,), in_specs=[spec], out_specs=spec), aval)


def test_offsets_past_int32():
    """Pallas computes offsets in int32 up to 2^32 bytes: too late for bytes, whose offsets pass 2^31 before that."""
    length = 2**31 + 8192
    with pytest.raises(KernelFault) as caught:
        check_addresses(big_copy(jnp.int8, length))
    assert caught.value.fault.kind == FaultKind.ADDRESS_OVERFLOW
    assert check_addresses(big_copy(jnp.int8, 2**31)).buffers[0].highest == 2**31 - 1
    report = check_addresses(big_copy(F, length))  # 64-bit offsets
    assert report.buffers[1].highest == length - 1
    assert 3 <= report.cells <= 4
    with pytest.raises(KernelFault) as caught:  # block index times block size is int32 even then
        check_addresses(big_copy(F, 5 * 2**30))
    assert caught.value.fault.kind == FaultKind.ADDRESS_OVERFLOW
    assert check_addresses(big_copy(F, 5 * 2**30), cells=[7]).buffers[0].lowest == 7 * 4096


def test_addresses_only_catches_a_wrong_index_map():
    def body(x_ref, y_ref):
        y_ref[...] = x_ref[...]

    length = 2**20
    shifted = pl.BlockSpec((1024,), lambda i: (i + 1,))
    grid = (length // 1024,)
    aval = S((length,), F)
    call = the_call(kernel(body, aval, grid=grid, in_specs=[shifted], out_specs=rows(1024)), aval)
    with pytest.raises(KernelFault) as caught:
        check_addresses(call)
    assert caught.value.fault.kind == FaultKind.OUT_OF_BOUNDS_LOAD
    assert caught.value.fault.cell == (1023, 0, 0)
    assert check_addresses(call, cells=range(1023)).faults == ()


def test_addresses_that_come_from_an_operand():
    def body(i_ref, x_ref, y_ref):
        y_ref[...] = x_ref[pl.ds(i_ref[0], 64)]

    call = the_call(kernel(body, S((64,), F)), S((1,), INT), S((2**33,), F))
    assert check_addresses(call).buffers[1].highest == 63
    assert check_addresses(call, inputs={0: np.int32([1000])}).buffers[1].highest == 1063


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


def test_lowering_finds_calls_in_functions_and_loops():
    def twice(x):
        x = jax.jit(row_norm)(x, jnp.ones((64,), F))
        x, _ = jax.lax.scan(lambda c, w: (row_norm(c, w), None), x, jnp.ones((3, 64), F))
        return x

    calls = triton_calls(lower(twice, S((16, 64), F)))
    assert [call.name for call in calls] == ["norm_body", "norm_body"]
    call = calls[0]
    assert (call.grid, call.num_warps, call.num_stages, call.aliases) == ((4, 1, 1), 2, 1, {})
    assert [s.shape for s in call.operands] == [(16, 64), (64,)]
    assert [(s.shape, s.dtype) for s in call.results] == [((16, 64), np.float32)]


def double_body(x_ref, y_ref):
    y_ref[...] = x_ref[...] * 2


def double(x):
    """y = 2x by a kernel, for any shape whose first axis is 32."""
    return kernel(double_body, S(x.shape, x.dtype))(x)


@jax.custom_vjp
def cube(x):
    """x^3 with a kernel in the forward and one in the backward."""
    return cube_forward(x)[0]


def cube_body(x_ref, y_ref):
    y_ref[...] = x_ref[...] * x_ref[...] * x_ref[...]


def cube_back_body(x_ref, g_ref, y_ref):
    y_ref[...] = 3 * x_ref[...] * x_ref[...] * g_ref[...]


def cube_forward(x):
    return kernel(cube_body, S(x.shape, x.dtype))(x), x


def cube_backward(x, g):
    return (kernel(cube_back_body, S(x.shape, x.dtype))(x, g),)


cube.defvjp(cube_forward, cube_backward)


def names(reports):
    return [report.name for report in reports]


def test_execute_jit_and_vmap():
    x = normal(3, 32)
    y, [report] = execute(jax.jit(lambda x: {"y": jax.vmap(double)(x) + 1}), x)
    np.testing.assert_array_equal(y["y"], 2 * x + 1)
    assert np.prod(report.grid) == 3
    assert report.bytes_stored == x.nbytes


def test_execute_two_vmaps_of_a_two_dimensional_grid():
    """Four grid axes, folded into three by the lowering."""

    def body(x_ref, y_ref):
        y_ref[...] = x_ref[...] + (10 * pl.program_id(0) + pl.program_id(1)).astype(F)

    spec = pl.BlockSpec((8, 16), lambda i, j: (i, j))
    add = kernel(body, S((16, 48), F), grid=(2, 3), in_specs=[spec], out_specs=spec)
    x = normal(2, 5, 16, 48)
    y, [report] = execute(jax.vmap(jax.vmap(add)), x)
    offsets = 10 * np.repeat([0, 1], 8)[:, None] + np.repeat([0, 1, 2], 16)[None, :]
    np.testing.assert_array_equal(y, x + offsets.astype(np.float32))
    assert np.prod(report.grid) == 60


def test_execute_gradient_of_a_custom_vjp_under_remat():
    x = normal(32)

    def loss(x):
        return jnp.sum(jnp.sin(jax.checkpoint(lambda x: cube(cube(x) * 0.5))(x)))

    value, reports = execute(lambda x: loss(x), x)
    inner = 0.5 * x**3
    np.testing.assert_allclose(value, np.sin(inner**3).sum(), rtol=1e-5)
    assert names(reports) == ["cube_body"] * 2
    gradient, reports = execute(jax.grad(loss), x)
    np.testing.assert_allclose(gradient, np.cos(inner**3) * 3 * inner**2 * 1.5 * x**2, rtol=2e-5, atol=1e-6)
    assert names(reports).count("cube_back_body") == 2
    assert names(reports).count("cube_body") >= 3  # remat runs the forward again


@pytest.mark.parametrize("reverse", [False, True])
def test_execute_scan(reverse):
    def step(c, x):
        c = cube(c) * 0.1 + x
        return c, c + 1

    def scan(c, xs):
        return jax.lax.scan(step, c, xs, reverse=reverse)

    c, xs = normal(32), normal(4, 32, seed=1)
    (last, ys), reports = execute(scan, c, xs)
    assert names(reports) == ["cube_body"] * 4
    wanted = np.zeros_like(xs)
    h = c
    for i in reversed(range(4)) if reverse else range(4):
        h = h**3 * np.float32(0.1) + xs[i]
        wanted[i] = h + 1
    np.testing.assert_allclose(ys, wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(last, h, rtol=1e-5, atol=1e-5)
    gradient, reports = execute(jax.grad(lambda c: jnp.sum(scan(c, jnp.asarray(xs))[0])), c)
    assert names(reports) == ["cube_body"] * 4 + ["cube_back_body"] * 4
    hs, h = [], np.float64(c)
    for i in reversed(range(4)) if reverse else range(4):
        hs.append(h)
        h = h**3 * 0.1 + xs[i]
    np.testing.assert_allclose(gradient, np.prod([0.3 * h**2 for h in hs], axis=0), rtol=1e-4, atol=1e-6)


def test_execute_takes_the_cuda_branch():
    def chosen(x):
        return jax.lax.platform_dependent(x, cuda=double, default=lambda x: x * 100)

    x = normal(32)
    y, reports = execute(jax.jit(chosen), x)
    np.testing.assert_array_equal(y, 2 * x)
    assert names(reports) == ["double_body"]
    np.testing.assert_array_equal(chosen(x), 100 * x)


@pytest.mark.parametrize("index", [0, 1])
def test_execute_cond(index):
    def chosen(i, x):
        return jax.lax.cond(i == 0, double, cube, x)

    _, reports = execute(chosen, np.int32(index), normal(32))
    assert names(reports) == [["double_body"], ["cube_body"]][index]


def test_execute_refuses_a_kernel_in_a_while_loop():
    def loop(x):
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 10, double, x)

    with pytest.raises(UnsupportedOperation, match="inside while"):
        execute(loop, np.ones(32, np.float32))


def test_execute_leaves_other_loops_to_jax():
    def loop(x):
        return double(jax.lax.while_loop(lambda x: jnp.sum(x) < 100, lambda x: x * 2, x))

    y, _ = execute(loop, np.ones(32, np.float32))
    np.testing.assert_array_equal(y, np.full(32, 8))


def test_faults_inside_a_program_name_the_kernel():
    def out_of_bounds_body(x_ref, y_ref):
        y_ref[...] = x_ref[pl.ds(pl.program_id(0) * 64, 64)]

    def program(x):
        spec = rows(64)
        bad = kernel(out_of_bounds_body, S((128,), F), grid=(2,), in_specs=[whole(100)], out_specs=spec)
        return double(bad(x + 1))

    fault = fault_of(jax.jit(program), normal(100))
    assert (fault.kernel, fault.cell) == ("out_of_bounds_body", (1, 0, 0))
    _, reports = execute(program, normal(100), collect=True)
    assert [len(report.faults) for report in reports] == [1, 0]
