"""chunked_attention kernels against XLA reference and oracles: interpreted by Pallas, and as executed lowered IR."""

import pytest

from tests import kernel_parity


@pytest.mark.parametrize(
    "spec", kernel_parity.everyday(kernel_parity.ATTENTION, "one token", "masked", "packed"), ids=str
)
def test_interpreted(spec):
    kernel_parity.check(spec, "triton_interpret")


@pytest.mark.parametrize("spec", kernel_parity.ATTENTION, ids=str)
def test_lowered(spec):
    kernel_parity.check(spec, "lowered")
