"""feature_norm: against the float64 oracle, what rounds and when, what is kept for the backward, widths, the layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from megalodon_jax.layers.norms import BatchedLayerNorm, RMSNorm
from pallas_kernels import compile_for, explain, feature_norm
from pallas_kernels.feature_norm.tiles import MAX_FEATURES
from reference import oracle_numpy_features as oracle
from tests import cases, kernel_parity
from tests.tolerance import assert_close


def inputs(r) -> dict[str, np.ndarray]:
    """x of 2 x 9 tokens of 7 features, weight, bias."""
    return {"x": cases.normal(r, 2, 9, 7), "weight": cases.normal(r, 7), "bias": cases.normal(r, 7)}


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("on", kernel_parity.first([("weight", "bias"), (), ("weight",), ("bias",)], 2), ids=str)
def test_values_and_gradients(on, centred):
    r = cases.rng(0)
    given = {name: array for name, array in inputs(r).items() if name in ("x", *on)}
    fixed = {"centred": centred, "minus_one": len(on) == 2, "eps": 1e-3}
    y, pullback = jax.vjp(lambda given: feature_norm(**given, **fixed), jax.tree.map(jnp.asarray, given))
    assert_close("y", y, oracle.feature_norm(**given, **fixed))
    dy = cases.normal(r, *y.shape)
    expected = oracle.feature_norm_vjp(**given, **fixed, dy=dy)
    assert expected.keys() == given.keys()
    for name, gradient in pullback(jnp.asarray(dy))[0].items():
        assert_close(f"d{name}", gradient, expected[name], units=30)


@pytest.mark.parametrize("centred", [False, True])
def test_the_adjoint_is_the_derivative(centred):
    """The oracle's gradients, by central differences."""
    r = cases.rng(1)
    given = {name: array.astype(np.float64) for name, array in inputs(r).items()}
    dy = r.normal(size=given["x"].shape)
    loss = lambda given: (oracle.feature_norm(**given, centred=centred, minus_one=True) * dy).sum()  # noqa: E731
    for name, gradient in oracle.feature_norm_vjp(**given, centred=centred, minus_one=True, dy=dy).items():
        step = r.normal(size=gradient.shape)
        there, back = (loss(given | {name: given[name] + move}) for move in (1e-6 * step, -1e-6 * step))
        np.testing.assert_allclose((there - back) / 2e-6, (gradient * step).sum(), rtol=1e-6)


def test_rounded_once():
    """bfloat16 is that of the float32 result; gradients of parameters are float32."""
    x, weight, bias = map(jnp.asarray, inputs(cases.rng(2)).values())
    x = x.astype(jnp.bfloat16)
    op = lambda *given: feature_norm(*given, centred=True)  # noqa: E731
    y, pullback = jax.vjp(op, x, weight, bias)
    assert jnp.array_equal(y, op(x.astype(jnp.float32), weight, bias).astype(jnp.bfloat16))
    assert [gradient.dtype for gradient in pullback(y)] == [jnp.bfloat16, jnp.float32, jnp.float32]


@pytest.mark.parametrize("implementation", ["xla", "triton_interpret"])
def test_nothing_but_the_arguments_is_kept(implementation):
    given = tuple(map(jnp.asarray, inputs(cases.rng(3)).values()))
    op = lambda *given: feature_norm(*given, centred=True, implementation=implementation)  # noqa: E731
    _, pullback = jax.vjp(op, *given)
    kept = [leaf for leaf in jax.tree.leaves(pullback) if leaf.size > 1]
    assert kept
    assert all(any(leaf.shape == a.shape and jnp.array_equal(leaf, a) for a in given) for leaf in kept)


def test_forward_mode_is_left_to_xla():
    x = jnp.ones((1, 4, 3))
    op = lambda x, implementation: feature_norm(x, centred=True, implementation=implementation)  # noqa: E731
    with pytest.raises(TypeError, match=r'feature_norm.*implementation="xla"'):
        jax.jvp(lambda x: op(x, "triton_interpret"), (x,), (x,))
    assert jax.jvp(lambda x: op(x, "xla"), (x,), (x,))[1].shape == (1, 4, 3)


@pytest.mark.parametrize(("features", "length"), [(MAX_FEATURES, 2), (MAX_FEATURES + 1, 2), (8, 1)])
def test_what_is_left_to_xla(features, length):
    x = jax.ShapeDtypeStruct((1, length, features), jnp.float32)
    with compile_for("sm_90"):
        xla, kernel, _ = explain(feature_norm, x, centred=True).rows
    assert kernel.chosen == (not xla.chosen) == (features == MAX_FEATURES)
    assert kernel.available == (features <= MAX_FEATURES)
    assert kernel.available or f"at most {MAX_FEATURES}" in kernel.reason


@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 4, 7)])
def test_layers_take_any_batch(shape):
    x, r = cases.normal(cases.rng(4), *shape), cases.rng(5)
    gain, bias = cases.normal(r, 7), cases.normal(r, 7)
    rms, layer = RMSNorm(7), BatchedLayerNorm(7, minus_one=True)
    object.__setattr__(rms, "gamma", jnp.asarray(gain))
    object.__setattr__(layer, "weight", jnp.asarray(gain, jnp.bfloat16))
    object.__setattr__(layer, "bias", jnp.asarray(bias))
    tokens = x.reshape(1, -1, 7)
    expected = oracle.feature_norm(tokens, gain, centred=False, minus_one=True, eps=1e-6)
    assert_close("RMS norm", rms(jnp.asarray(x)), expected.reshape(shape))
    rounded = np.asarray(layer.weight, np.float64)
    expected = oracle.feature_norm(tokens, rounded, bias, centred=True, minus_one=True)
    assert_close("layer norm", layer(jnp.asarray(x)), expected.reshape(shape))
