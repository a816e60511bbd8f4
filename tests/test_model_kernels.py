"""A model with all kernels on, interpreted, against the float64 model and the same model with the kernels off."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from megalodon_jax.ops import linear_3d
from pallas_kernels import use_implementation
from tests import kernel_parity, models


@pytest.mark.parametrize(
    "dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.thorough)], ids=["float32", "bfloat16"]
)
def test_model_interpreted(dtype):
    kernel_parity.check_model(dtype, "triton_interpret")


@pytest.mark.thorough
@pytest.mark.parametrize("variant", models.VARIANTS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_model_with_fused_layers_interpreted(dtype, variant):
    kernel_parity.check_model(dtype, "triton_interpret", "fused", **models.VARIANTS[variant])


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("variant", models.VARIANTS)
def test_fused_layers_by_the_reference(variant, deterministic):
    """On CPU the reference's: the same model, with dropout too, which keeps some of a layer's surroundings apart."""
    changes = models.VARIANTS[variant] | {"dropout": 0.2, "hidden_dropout": 0.3}
    default, fused = (models.build(gemm_backend=backend, **changes) for backend in ("default", "fused"))
    run = eqx.filter_jit(lambda model: model(models.ids(), deterministic=deterministic, key=jax.random.key(1))[0])
    np.testing.assert_allclose(run(fused), run(default), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("shape", [(4,), (3, 4), (1, 4), (2, 3, 4), (2, 3, 1, 4), (2, 2, 3, 4)], ids=str)
def test_a_fused_layer_takes_every_shape_that_the_default_takes(shape):
    layer = eqx.nn.Linear(4, 5, key=jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), shape)
    run = lambda gemm_backend: linear_3d(layer, x, jnp.float32, jnp.float32, gemm_backend)  # noqa: E731
    with use_implementation(fused_linear="triton_interpret"):
        np.testing.assert_allclose(run("fused"), run("default"), rtol=1e-5, atol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("gemm_backend", ["default", "fused"])
def test_stream_interpreted(gemm_backend):
    kernel_parity.check_stream("triton_interpret", gemm_backend)
