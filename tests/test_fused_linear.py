"""fused_linear: against the float64 oracle, which options there are, dtypes, and what is kept for the backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import (
    LinearTiles,
    Tiles,
    compile_for,
    explain,
    fused_linear,
    kernels_in,
    round_weights,
    use_tiles,
)
from reference import oracle_numpy_linear as oracle
from tests import cases, kernel_parity
from tests.tolerance import assert_close

OPTIONS = ("bias", "x_bias", "residual", "gate")


def inputs(r) -> dict[str, np.ndarray]:
    """Every argument, of 2 x 9 tokens, 7 features and 5 outputs."""
    shapes = {"x": (2, 9, 7), "weight": (5, 7), "bias": (5,), "x_bias": (7,), "residual": (2, 9, 5)}
    shapes |= {"gate": (2, 9, 7), "gate_bias": (7,)}
    return {name: cases.normal(r, *shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("on", [(), *((name,) for name in OPTIONS), OPTIONS], ids=str)
def test_values_and_gradients(on, activation):
    r = cases.rng(0)
    on = (*on, "gate_bias") if "gate" in on else on
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
    given |= {name: given[name].astype(jnp.bfloat16) for name in ("x", "residual", "gate")}
    given["weight"] = given["weight"].astype(weight_dtype)
    op = lambda given: fused_linear(**given, activation="silu", implementation=implementation)  # noqa: E731
    y, pullback = jax.vjp(op, given)
    assert y.dtype == jnp.bfloat16
    gradients = pullback(y)[0]
    assert {name: array.dtype for name, array in gradients.items()} == {n: array.dtype for n, array in given.items()}


@pytest.mark.parametrize("implementation", ["xla", "triton_interpret"])
def test_a_copy_of_the_weight_is_multiplied_with(implementation):
    """In place of the weight, which has the gradient that it has without."""
    x, weight = (jnp.asarray(inputs(cases.rng(4))[name]) for name in ("x", "weight"))
    x = x.astype(jnp.bfloat16)
    (copy,) = round_weights(weight, implementation=implementation)
    op = lambda x, weight, rounded: fused_linear(x, weight, rounded=rounded, implementation=implementation)  # noqa: E731
    alone, pullback = jax.vjp(op, x, weight, None)
    y, with_copy = jax.vjp(op, x, weight, copy)
    np.testing.assert_array_equal(y, alone)
    for gradient, expected in zip(with_copy(y)[:2], pullback(y)[:2], strict=True):
        assert gradient.dtype == expected.dtype
        np.testing.assert_array_equal(gradient, expected)
    if implementation != "xla":
        assert not op(x, weight, jnp.zeros_like(copy)).any()


@pytest.mark.parametrize("implementation", ["xla", "triton_interpret"])
def test_several_layers_are_each_of_them(implementation):
    given = {name: jnp.asarray(array) for name, array in inputs(cases.rng(5)).items()}
    front = {name: given[name] for name in ("x", "x_bias", "gate", "gate_bias")}
    weights = given["weight"], given["weight"][:3]
    op = lambda **layers: fused_linear(**front, **layers, activation="silu", implementation=implementation)  # noqa: E731
    together = op(weight=weights, bias=(given["bias"], None), residual=(None, given["residual"][..., :3]))
    alone = op(weight=weights[0], bias=given["bias"]), op(weight=weights[1], residual=given["residual"][..., :3])
    for y, expected in zip(together, alone, strict=True):
        np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize(
    ("asked", "kernels"),
    [
        (("x",), ("dx",)),
        (("x_bias",), ("dx",)),
        (("weight",), ("dw",)),
        (("bias",), ("dw",)),
        (("residual",), ()),
        (("x", "weight"), ("dx", "dw")),
    ],
    ids=str,
)
@pytest.mark.parametrize("gated", [False, True])
def test_no_kernel_runs_for_gradients_that_nobody_asks_for(asked, kernels, gated):
    """But for a gated one dW is made of what dx leaves behind."""
    given = {name: jnp.asarray(array) for name, array in inputs(cases.rng(6)).items() if gated or "gate" not in name}
    part = {name: given[name] for name in asked}

    def gradients(part, implementation=None):
        loss = lambda part: jnp.sum(  # noqa: E731
            fused_linear(**given | part, activation="silu", implementation=implementation) ** 2
        )
        return jax.grad(loss)(part)

    with compile_for("sm_90"):
        lowered = jax.jit(gradients).trace(part).lower(lowering_platforms=("cuda",))
    wanted = ("dx", "dw") if gated and "dw" in kernels else kernels
    assert kernels_in(lowered) == tuple(f"fused_linear_{name}" for name in ("forward", *wanted))
    found, expected = (gradients(part, implementation) for implementation in ("triton_interpret", "xla"))
    for name in asked:
        assert_close(f"d{name}", found[name], expected[name], units=30)


@pytest.mark.parametrize("implementation", ["xla", "triton_interpret"])
def test_a_layer_whose_result_nobody_uses(implementation):
    x, weight = (jnp.asarray(inputs(cases.rng(7))[name]) for name in ("x", "weight"))
    loss = lambda x, weights: jnp.sum(fused_linear(x, weights, implementation=implementation)[0])  # noqa: E731
    dx, (dw, nothing) = jax.grad(loss, (0, 1))(x, (weight, weight[:3]))
    alone = jax.grad(lambda x, weight: loss(x, (weight,)), (0, 1))(x, weight)
    assert_close("dx", dx, alone[0])
    assert_close("dw", dw, alone[1])
    assert not nothing.any()


def test_the_residual_is_not_kept():
    given = {name: jnp.asarray(array) for name, array in inputs(cases.rng(3)).items()}
    op = lambda given: fused_linear(**given, activation="silu", implementation="triton_interpret")  # noqa: E731
    y, pullback = jax.vjp(op, given)
    kept = [leaf.shape for leaf in jax.tree.leaves(pullback)]
    assert given["x"].shape in kept
    assert y.shape not in kept


def test_forward_mode_is_left_to_xla():
    x, weight = jnp.ones((1, 4, 3)), jnp.ones((2, 3))
    op = lambda x, implementation: fused_linear(x, weight, activation="silu", implementation=implementation)  # noqa: E731
    with pytest.raises(TypeError, match=r'fused_linear.*implementation="xla"'):
        jax.jvp(lambda x: op(x, "triton_interpret"), (x,), (x,))
    assert jax.jvp(lambda x: op(x, "xla"), (x,), (x,))[1].shape == (1, 4, 2)


def test_tiles():
    for wrong in ({"block_m": 8}, {"block_n": 24}, {"num_splits": 0}, {"num_warps": 3}):
        with pytest.raises(ValueError, match=f"LinearTiles: {next(iter(wrong))}"):
            LinearTiles(**{"block_m": 16, "block_n": 16, "block_k": 16, "num_warps": 4, "num_stages": 1} | wrong)
    with pytest.raises(TypeError, match="LinearTiles"), use_tiles(fused_linear_dw=Tiles(16, 1, 4)):
        pass
    with compile_for("sm_90"), use_tiles(fused_linear_dw=LinearTiles(64, 32, 16, 4, 2, num_splits=3)):
        table = str(explain(fused_linear, jnp.ones((1, 64, 32)), jnp.ones((64, 32))))
    assert "fused_linear_dw: 64 x 32, 16 terms, 4 warps, 2 stages, 3 splits (override)" in table
