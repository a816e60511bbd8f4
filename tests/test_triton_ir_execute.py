"""Whole jax programs with their kernels run from the lowered IR: finding kernels, jax's transformations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from bench.inspect.lowering import lower, triton_calls
from bench.inspect.triton_ir import (
    UnsupportedOperation,
    execute,
)
from tests.triton_toys import F, S, fault_of, kernel, normal, row_norm, rows, whole


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
