"""feature_norm kernels against XLA reference and oracles: interpreted by Pallas, and as executed lowered IR."""

import pytest

from tests import feature_laws, kernel_parity


@pytest.mark.parametrize("spec", kernel_parity.everyday(kernel_parity.FEATURES, "one token"), ids=str)
def test_interpreted(spec):
    kernel_parity.check(spec, "triton_interpret")


@pytest.mark.parametrize(
    "spec",
    kernel_parity.everyday(kernel_parity.FEATURES, "ragged", "RMS, bfloat16", "no parameters"),
    ids=str,
)
def test_lowered(spec):
    kernel_parity.check(spec, "lowered")


@kernel_parity.on_both_rungs
@pytest.mark.parametrize("centred", [False, True])
def test_scale_and_shift_make_no_difference(rung, centred):
    feature_laws.check_invariance(rung, centred)


@kernel_parity.on_both_rungs
def test_tokens_never_touch(rung):
    feature_laws.check_isolation(rung)


@kernel_parity.on_both_rungs
@pytest.mark.parametrize("tiles", kernel_parity.first(feature_laws.LAUNCH_SHAPES, 1))
def test_every_launch_shape_gives_the_same(rung, tiles):
    feature_laws.check_launch_shape(rung, tiles)
