"""The TimestepNorm kernels against XLA reference and oracles: interpreted by Pallas, and as executed lowered IR."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bench.inspect.triton_ir import execute
from pallas_kernels import Tiles, timestep_norm
from tests import cases, kernel_parity, norm_laws


@pytest.mark.parametrize(
    "spec", kernel_parity.everyday(kernel_parity.NORM, "one token", "packed, chunks", "masked, all features"), ids=str
)
def test_interpreted(spec):
    kernel_parity.check(spec, "triton_interpret")


@pytest.mark.parametrize(
    "spec",
    kernel_parity.all_but(kernel_parity.NORM, "64k tokens, all features", "shipped bfloat16 tiles, packed"),
    ids=str,
)
def test_lowered(spec):
    kernel_parity.check(spec, "lowered")


@kernel_parity.on_both_rungs
@pytest.mark.parametrize("statistics", norm_laws.STATISTICS)
@pytest.mark.parametrize("chunks", norm_laws.CHUNKS)
def test_documents_never_touch(rung, statistics, chunks):
    norm_laws.check_isolation(rung, statistics, chunks)


@kernel_parity.on_both_rungs
@pytest.mark.parametrize("statistics", norm_laws.STATISTICS)
def test_no_token_depends_on_a_later_one(rung, statistics):
    norm_laws.check_causality(rung, statistics)


@pytest.mark.parametrize("rung", ["triton_interpret", "lowered", "xla"])
def test_masked_values_may_be_anything_where_they_give_nothing(rung):
    norm_laws.check_masked_values(rung)


@kernel_parity.on_both_rungs
@pytest.mark.parametrize("tiles", kernel_parity.first(norm_laws.LAUNCH_SHAPES, 2))
def test_every_launch_shape_gives_the_same(rung, tiles):
    norm_laws.check_launch_shape(rung, tiles)


def test_execution_does_not_depend_on_the_order_of_the_programs():
    x = jnp.asarray(cases.normal(cases.rng(4), 3, 50, 8))
    with norm_laws.both(Tiles(8, 3, 1)):
        f = jax.grad(lambda x: jnp.sum(jnp.sin(timestep_norm(x, num_groups=2, implementation="triton"))))
        first, second = (np.asarray(execute(f, x, seed=seed)[0]) for seed in (0, 1))
    np.testing.assert_array_equal(first, second)
