"""fused_linear: against the float64 oracle, which options there are, dtypes, and what is kept for the backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import fused_linear
from reference import oracle_numpy_linear as oracle
from tests import cases, kernel_parity
from tests.tolerance import assert_close

OPTIONS = ("bias", "x_bias", "residual")


def inputs(r) -> dict[str, np.ndarray]:
    """Every argument, of 2 x 9 tokens, 7 features and 5 outputs."""
    shapes = {"x": (2, 9, 7), "weight": (5, 7), "bias": (5,), "x_bias": (7,), "residual": (2, 9, 5)}
    return {name: cases.normal(r, *shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("on", [(), *((name,) for name in OPTIONS), OPTIONS], ids=str)
def test_values_and_gradients(on, activation):
    r = cases.rng(0)
    given = {name: array for name, array in inputs(r).items() if name in ("x", "weight", *on)}
    op = lambda given: fused_linear(**given, activation=activation)  # noqa: E731
    y, pullback = jax.vjp(op, {name: jnp.asarray(array) for name, array in given.items()})
    assert_close("y", y, oracle.fused_linear(**given, activation=activation))
    dy = cases.normal(r, *y.shape)
    expected = oracle.fused_linear_vjp(**given, activation=activation, dy=dy)
    for name, gradient in pullback(jnp.asarray(dy))[0].items():
        assert_close(f"d{name}", gradient, expected[name], units=30)


def test_the_adjoint_is_the_derivative():
    """The oracle's gradients, by central differences."""
    r = cases.rng(1)
    given = {name: array.astype(np.float64) for name, array in inputs(r).items()}
    dy = r.normal(size=given["residual"].shape)
    loss = lambda given: (oracle.fused_linear(**given, activation="silu") * dy).sum()  # noqa: E731
    for name, gradient in oracle.fused_linear_vjp(**given, activation="silu", dy=dy).items():
        step = r.normal(size=gradient.shape)
        there, back = (loss(given | {name: given[name] + move}) for move in (1e-6 * step, -1e-6 * step))
        np.testing.assert_allclose((there - back) / 2e-6, (gradient * step).sum(), rtol=1e-6)


@pytest.mark.parametrize("implementation", ["xla", "triton_interpret"])
@pytest.mark.parametrize("weight_dtype", kernel_parity.first([jnp.float32, jnp.bfloat16], 1))
def test_dtypes(implementation, weight_dtype):
    """y and the gradients of x and residual are of the dtype of x, that of weight is of its own."""
    given = {name: jnp.asarray(array) for name, array in inputs(cases.rng(2)).items()}
    given |= {name: given[name].astype(jnp.bfloat16) for name in ("x", "residual")}
    given["weight"] = given["weight"].astype(weight_dtype)
    op = lambda given: fused_linear(**given, activation="silu", implementation=implementation)  # noqa: E731
    y, pullback = jax.vjp(op, given)
    assert y.dtype == jnp.bfloat16
    gradients = pullback(y)[0]
    assert {name: array.dtype for name, array in gradients.items()} == {n: array.dtype for n, array in given.items()}


def test_the_residual_is_not_kept():
    given = {name: jnp.asarray(array) for name, array in inputs(cases.rng(3)).items()}
    op = lambda given: fused_linear(**given, activation="silu", implementation="triton_interpret")  # noqa: E731
    y, pullback = jax.vjp(op, given)
    kept = [leaf.shape for leaf in jax.tree.leaves(pullback)]
    assert given["x"].shape in kept
    assert y.shape not in kept
