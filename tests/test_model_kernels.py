"""A model with all kernels on, interpreted, against the float64 model and the same model with the kernels off."""

import jax.numpy as jnp
import pytest

from tests import kernel_parity


@pytest.mark.parametrize(
    "dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.thorough)], ids=["float32", "bfloat16"]
)
def test_model_interpreted(dtype):
    kernel_parity.check_model(dtype, "triton_interpret")


@pytest.mark.thorough
def test_stream_interpreted():
    kernel_parity.check_stream("triton_interpret")
