"""Block-scaled matmuls: formats by hand, products and gradients against float64 products of what was quantised."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from megalodon_jax.cli import doctor
from megalodon_jax.low_precision import FORMATS, product, quantize, support
from megalodon_jax.ops import linear_3d
from tests import kernel_parity, models
from tests.tolerance import errors

BOTH = list(FORMATS)


def values(x, name):
    """What the quantised numbers are, in float64."""
    elements, scales, whole = quantize(x, name)
    wide = np.repeat(np.asarray(scales).astype(np.float64), FORMATS[name].block, axis=1)
    return np.asarray(elements).astype(np.float64) * wide * float(whole)


def random(*shape, seed=0, spread=3.0):
    """Numbers of many sizes."""
    r = np.random.default_rng(seed)
    return jnp.asarray(r.normal(size=shape) * np.exp(spread * r.normal(size=(shape[0], 1))), jnp.float32)


@pytest.mark.parametrize("name", BOTH)
def test_formats(name):
    form = FORMATS[name]
    elements, scales, whole = quantize(random(5, 70), name)
    assert elements.dtype == form.element
    assert scales.dtype == form.scale
    assert elements.shape == (5, 70 + -70 % form.block)
    assert scales.shape == (5, elements.shape[1] // form.block)
    assert not np.asarray(elements[:, 70:]).astype(np.float32).any()
    assert np.abs(np.asarray(elements).astype(np.float32)).max() <= form.largest
    assert (whole == 1.0) == (name == "mxfp8")


@pytest.mark.parametrize("name", BOTH)
def test_every_element_is_the_nearest(name):
    """Of those that the scale of its block can express; the scale lets the largest one in."""
    form = FORMATS[name]
    x = np.asarray(random(7, 64), np.float64)
    elements, scales, whole = quantize(jnp.asarray(x, jnp.float32), name)
    steps = np.arange(256 if name == "mxfp8" else 16, dtype=np.uint8)
    table = steps.view(ml_dtypes.float8_e4m3fn) if name == "mxfp8" else steps.astype(np.uint8)
    if name == "nvfp4":
        table = np.asarray([0, 0.5, 1, 1.5, 2, 3, 4, 6])
        table = np.concatenate([table, -table])
    table = np.asarray(table).astype(np.float64)
    table = table[np.isfinite(table)]
    scale = np.repeat(np.asarray(scales).astype(np.float64), form.block, axis=1) * float(whole)
    nearest = np.abs(x[..., None] / scale[..., None] - table).min(-1)
    found = np.abs(x / scale - np.asarray(elements).astype(np.float64))
    np.testing.assert_allclose(found, nearest, atol=1e-5)
    if name == "mxfp8":
        largest = np.abs(x.reshape(7, -1, 32)).max(-1) / np.asarray(scales).astype(np.float64)
        assert ((largest <= 448) & (largest > 224)).all()


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("x", [np.zeros((2, 33)), np.full((2, 33), 1e-38), np.full((2, 33), 3e38), np.eye(2, 33)])
def test_extremes(name, x):
    x = jnp.asarray(x, jnp.float32)
    found = values(x, name)
    assert np.isfinite(found).all()
    assert np.abs(found[:, :33] - x).max() <= 0.07 * float(jnp.abs(x).max()) + 1e-37


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("name", BOTH)
def test_what_is_not_finite_stays_so(name, bad):
    """An overflow is not hidden from whoever looks for one."""
    x = random(3, 40).at[1, 35].set(bad)
    assert not np.isfinite(np.asarray(product(x, random(5, 40), name))[1]).any()
    assert not np.isfinite(np.asarray(product(random(5, 40), x, name))[:, 1]).any()


@pytest.mark.parametrize("name", BOTH)
def test_nothing_gives_nothing(name):
    assert product(jnp.ones((0, 40)), random(5, 40), name).shape == (0, 5)


@pytest.mark.parametrize("name", BOTH)
def test_product_is_that_of_the_quantised_numbers(name):
    x, w = random(6, 100), random(9, 100, seed=1)
    exact = values(x, name) @ values(w, name).T
    assert errors(product(x, w, name), exact)[0] < 1e-6
    relative = errors(product(x, w, name), np.asarray(x, np.float64) @ np.asarray(w, np.float64).T)[0]
    assert relative < {"mxfp8": 0.08, "nvfp4": 0.25}[name]


@pytest.mark.parametrize("name", BOTH)
def test_gradients_are_products_of_quantised_numbers(name):
    """Each operand quantised along the axis that its product sums over."""
    x, w, dy = random(40, 70), random(50, 70, seed=1), random(40, 50, seed=2)
    _, pull = jax.vjp(lambda x, w: product(x, w, name), x, w)
    dx, dw = pull(dy)
    assert dx.shape == x.shape
    assert errors(dx, values(dy, name)[:, :50] @ values(w.T, name)[:, :50].T)[0] < 1e-6
    assert errors(dw, values(dy.T, name)[:, :40] @ values(x.T, name)[:, :40].T)[0] < 1e-6
    assert errors(dx, np.asarray(dy, np.float64) @ np.asarray(w, np.float64))[0] < {"mxfp8": 0.08, "nvfp4": 0.25}[name]


def test_the_library_agrees():
    """Where jax's own block-scaled product has a lowering for CPU; mxfp8, whose scales need no choice."""
    if jax.__version_info__ < (0, 11):
        pytest.skip("jax.nn.scaled_dot_general has no CPU lowering before jax 0.11")
    x, w = random(1, 6, 128).reshape(1, 6, 128), random(1, 9, 128).reshape(1, 9, 128)
    config = jax.nn.get_scaled_dot_general_config("mxfp8")
    theirs = jax.nn.scaled_dot_general(
        x, w, (((2,), (2,)), ((0,), (0,))), preferred_element_type=jnp.float32, configs=[config] * 3
    )
    assert errors(product(x[0], w[0], "mxfp8"), theirs[0])[0] < 0.05


@pytest.mark.parametrize("name", kernel_parity.first(BOTH, 1))
def test_a_model_with_quantised_layers(name):
    """Near the one without; head, norms and operations are not quantised."""
    exact, low = models.build(num_layers=1), models.build(num_layers=1, gemm_backend=name)
    ids = models.ids()
    relative = errors(low(ids)[0], exact(ids)[0])[0]
    assert 1e-3 < relative < {"mxfp8": 0.1, "nvfp4": 0.4}[name]
    hidden = jax.random.normal(jax.random.key(0), (1, 4, 32))
    np.testing.assert_array_equal(low.head(hidden), exact.head(hidden))
    layer = exact.model.layers[0].ffn.fc1
    assert linear_3d(layer, hidden, jnp.bfloat16, jnp.float32, name).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("platform", "capability", "said"),
    [
        ("cpu", "", "emulated: cpu has no"),
        ("gpu", "gfx90a", "emulated: gpu has no"),
        ("gpu", "9.0", "emulated: compute capability 9.0 has no"),
        ("gpu", "10.0", "the hardware has"),
        ("gpu", "12.1", "the hardware has"),
    ],
)
def test_what_the_hardware_has(platform, capability, said):
    assert support(platform, capability).startswith(said)


def test_doctor_says_that_products_are_emulated():
    for name in BOTH:
        assert f"  {name}    emulated: cpu has no instructions for block-scaled numbers" in doctor.report()
