"""normalized_rotary kernels against XLA reference and oracles: interpreted by Pallas, and as executed lowered IR."""

import pytest

from tests import kernel_parity, rotary_laws


@pytest.mark.parametrize(
    "spec", kernel_parity.everyday(kernel_parity.ROTARY, "one token", "chunks", "interleaved"), ids=str
)
def test_interpreted(spec):
    kernel_parity.check(spec, "triton_interpret")


@pytest.mark.parametrize("spec", kernel_parity.ROTARY, ids=str)
def test_lowered(spec):
    kernel_parity.check(spec, "lowered")


@kernel_parity.on_both_rungs
@pytest.mark.parametrize("interleaved", [False, True])
def test_scores_depend_on_differences_of_positions(rung, interleaved):
    rotary_laws.check_shift(rung, interleaved)


@kernel_parity.on_both_rungs
def test_tokens_never_touch(rung):
    rotary_laws.check_isolation(rung)


@kernel_parity.on_both_rungs
@pytest.mark.parametrize("tiles", kernel_parity.first(rotary_laws.LAUNCH_SHAPES, 2))
def test_every_launch_shape_gives_the_same(rung, tiles):
    rotary_laws.check_launch_shape(rung, tiles)
