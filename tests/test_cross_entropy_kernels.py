"""linear_cross_entropy kernels against XLA reference and oracles: interpreted by Pallas, and as executed lowered IR."""

import pytest

from tests import cross_entropy_laws, kernel_parity


@pytest.mark.parametrize("spec", kernel_parity.everyday(kernel_parity.CROSS_ENTROPY, "ragged"), ids=str)
def test_interpreted(spec):
    kernel_parity.check(spec, "triton_interpret")


@pytest.mark.parametrize(
    "spec",
    kernel_parity.everyday(
        kernel_parity.CROSS_ENTROPY, "words of two blocks", "ragged", "bfloat16, ragged", "heuristic bfloat16 tiles"
    ),
    ids=str,
)
def test_lowered(spec):
    kernel_parity.check(spec, "lowered")


@kernel_parity.on_both_rungs
def test_tokens_never_touch(rung):
    cross_entropy_laws.check_isolation(rung)


@kernel_parity.on_both_rungs
@pytest.mark.parametrize("dtype", kernel_parity.first(cross_entropy_laws.DTYPES, 1))
def test_what_does_not_count_may_hold_anything(rung, dtype):
    cross_entropy_laws.check_what_does_not_count(rung, dtype)


@kernel_parity.on_both_rungs
def test_logits_far_below_zero_give_no_nan(rung):
    cross_entropy_laws.check_logits_far_below_zero(rung)


@kernel_parity.on_both_rungs
@pytest.mark.parametrize("tiles", kernel_parity.first(cross_entropy_laws.LAUNCH_SHAPES, 1))
def test_every_launch_shape_gives_the_same(rung, tiles):
    cross_entropy_laws.check_launch_shape(rung, tiles)
