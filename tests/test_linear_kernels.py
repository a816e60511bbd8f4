"""fused_linear kernels against XLA reference and oracles: interpreted by Pallas, and as executed lowered IR."""

import pytest

from tests import kernel_parity, linear_laws


@pytest.mark.parametrize("spec", kernel_parity.everyday(kernel_parity.LINEAR, "one token", "ragged"), ids=str)
def test_interpreted(spec):
    kernel_parity.check(spec, "triton_interpret")


@pytest.mark.parametrize(
    "spec",
    kernel_parity.all_but(kernel_parity.LINEAR, "plain", "bias", "everything", "ragged, wide", "heuristic tiles"),
    ids=str,
)
def test_lowered(spec):
    kernel_parity.check(spec, "lowered")


@kernel_parity.on_both_rungs
@pytest.mark.parametrize("kind", kernel_parity.first(tuple(linear_laws.KINDS), 1))
def test_rows_never_touch(rung, kind):
    linear_laws.check_isolation(rung, **linear_laws.KINDS[kind])


@kernel_parity.on_both_rungs
@pytest.mark.parametrize("kind", kernel_parity.first(tuple(linear_laws.KINDS), 1))
@pytest.mark.parametrize("tiles", kernel_parity.first(linear_laws.LAUNCH_SHAPES, 2))
def test_every_launch_shape_gives_the_same(rung, tiles, kind):
    linear_laws.check_launch_shape(rung, tiles, **linear_laws.KINDS[kind])
