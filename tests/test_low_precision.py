"""Block-scaled matmuls: formats by hand, products and gradients against float64 products of what was quantised."""

from functools import partial
from typing import get_args

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from megalodon_jax.cli import doctor
from megalodon_jax.config import GemmBackend
from megalodon_jax.low_precision import FORMATS, product, quantize, support
from megalodon_jax.ops import linear_3d
from pallas_kernels._settings import OPS
from tests import kernel_parity, models
from tests.streams import stream
from tests.tolerance import errors

BOTH = list(FORMATS)


def values(x, name):
    """What the quantised numbers are, in float64."""
    elements, scales, whole = quantize(x, name)
    wide = np.repeat(np.asarray(scales).astype(np.float64), FORMATS[name].block, axis=1)
    return np.asarray(elements).astype(np.float64) * wide * np.asarray(whole, np.float64)[:, None]


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
    assert whole.shape == (5,)
    assert (np.asarray(whole) == 1.0).all() == (name == "mxfp8")


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
    scale = (
        np.repeat(np.asarray(scales).astype(np.float64), form.block, axis=1) * np.asarray(whole, np.float64)[:, None]
    )
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
    """An empty batch; and sums over nothing are zero, so are those of its gradients."""
    empty, w = jnp.ones((0, 40)), random(5, 40)
    y, pull = jax.vjp(lambda x, w: product(x, w, name), empty, w)
    dx, dw = pull(y)
    assert (y.shape, dx.shape) == ((0, 5), (0, 40))
    np.testing.assert_array_equal(dw, np.zeros((5, 40)))
    np.testing.assert_array_equal(product(jnp.ones((3, 0)), jnp.ones((5, 0)), name), np.zeros((3, 5)))


@pytest.mark.parametrize("name", BOTH)
def test_a_row_is_quantised_by_itself(name):
    """What else is in the batch, as large as it may be, changes nothing."""
    x = random(4, 70)
    for together, alone in zip(quantize(x.at[0].mul(1e6), name), quantize(x[1:], name), strict=True):
        np.testing.assert_array_equal(np.asarray(together[1:], np.float32), np.asarray(alone, np.float32))


@pytest.mark.thorough
@pytest.mark.parametrize("name", BOTH)
def test_a_model_stays_causal(name):
    """A token sees neither later tokens nor other rows, and a stream may be cut anywhere."""
    model, ids = models.build(num_layers=1, gemm_backend=name), models.ids()
    logits, _ = model(ids)
    changed, _ = model(ids.at[:, -1].set(7).at[1, 5:].add(3))
    assert errors(changed[0, :-1], logits[0, :-1])[0] < 1e-5
    assert errors(changed[1, :5], logits[1, :5])[0] < 1e-5
    assert errors(model(ids[:1])[0], logits[:1])[0] < 1e-5
    assert errors(stream(model, ids, (5, 1, 1, 14))[0], logits)[0] < 1e-5


@pytest.mark.parametrize("name", BOTH)
def test_product_is_that_of_the_quantised_numbers(name):
    """Also compiled, where a compiler could fold the rounding away."""
    x, w = random(6, 100), random(9, 100, seed=1)
    exact = values(x, name) @ values(w, name).T
    assert errors(product(x, w, name), exact)[0] < 1e-6
    np.testing.assert_array_equal(jax.jit(partial(product, name=name))(x, w), product(x, w, name))
    relative = errors(product(x, w, name), np.asarray(x, np.float64) @ np.asarray(w, np.float64).T)[0]
    assert relative < {"mxfp8": 0.08, "nvfp4": 0.25}[name]


@pytest.mark.parametrize("name", kernel_parity.first(BOTH, 1))
def test_gradients_are_products_of_quantised_numbers(name):
    """Each operand quantised along the axis that its product sums over."""
    x, w, dy = random(40, 70), random(50, 70, seed=1), random(40, 50, seed=2)
    _, pull = jax.vjp(lambda x, w: product(x, w, name), x, w)
    dx, dw = pull(dy)
    assert dx.shape == x.shape
    assert errors(dx, values(dy, name)[:, :50] @ values(w.T, name)[:, :50].T)[0] < 1e-6
    assert errors(dw, values(dy.T, name)[:, :40] @ values(x.T, name)[:, :40].T)[0] < 1e-6
    assert errors(dx, np.asarray(dy, np.float64) @ np.asarray(w, np.float64))[0] < {"mxfp8": 0.08, "nvfp4": 0.25}[name]


@pytest.mark.parametrize("name", BOTH)
def test_the_library_agrees(name):
    """jax's own quantiser and block-scaled product, where they have a lowering for CPU.

    nvfp4 has one scale for a tensor there and one for a row here: the rows have the same largest number.
    """
    if jax.__version_info__ < (0, 11):
        pytest.skip("jax.nn.scaled_dot_general has no CPU lowering before jax 0.11")
    x, w = random(6, 128), random(9, 128, seed=1)
    if name == "nvfp4":
        x, w = (a.at[:, 3].set(jnp.abs(a).max()) for a in (x, w))
    wholes = [None if name == "mxfp8" else quantize(a, name)[2][:1] for a in (x, w)]
    configs = [jax.nn.get_scaled_dot_general_config(name, whole) for whole in (*wholes, wholes[0])]
    theirs = jax.nn.scaled_dot_general(
        x[None], w[None], (((2,), (2,)), ((0,), (0,))), preferred_element_type=jnp.float32, configs=configs
    )
    assert errors(product(x, w, name), theirs[0])[0] < 1e-6


@pytest.mark.thorough
@pytest.mark.parametrize("name", BOTH)
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


def test_doctor_lists_every_op_and_backend():
    report = doctor.report()
    for name in OPS:
        assert f"\n  {name}\n    xla               chosen" in report
    for name in get_args(GemmBackend):
        assert f"\n  {name} " in report


def test_doctor_says_that_products_are_emulated():
    for name in BOTH:
        assert f"  {name}    emulated: cpu has no instructions for block-scaled numbers" in doctor.report()
