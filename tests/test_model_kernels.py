"""A model with all kernels on, interpreted, against the float64 model and the same model with the kernels off."""

import pytest

from tests import kernel_parity


@pytest.mark.parametrize("dtype", kernel_parity.MODEL_DTYPES)
def test_model_interpreted(dtype):
    kernel_parity.check_model(dtype, "triton_interpret")
