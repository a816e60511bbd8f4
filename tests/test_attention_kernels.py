"""chunked_attention kernels against XLA reference and oracles: interpreted by Pallas, and as executed lowered IR."""

import jax.numpy as jnp
import numpy as np
import pytest

from bench.formulations.attention import attention_by_value_tiles
from pallas_kernels import chunked_attention
from reference import oracle_numpy
from tests import attention_laws, cases, kernel_parity


@pytest.mark.parametrize(
    "spec", kernel_parity.everyday(kernel_parity.ATTENTION, "one token", "masked", "continued, packed"), ids=str
)
def test_interpreted(spec):
    kernel_parity.check(spec, "triton_interpret")


@pytest.mark.parametrize(
    "spec", kernel_parity.all_but(kernel_parity.ATTENTION, "gated, masked", "gated, long chunks"), ids=str
)
def test_lowered(spec):
    kernel_parity.check(spec, "lowered")


@kernel_parity.on_both_rungs
def test_documents_never_touch(rung):
    attention_laws.check_isolation(rung)


@kernel_parity.on_both_rungs
def test_no_query_depends_on_a_later_token_or_another_chunk(rung):
    attention_laws.check_causality(rung)


@kernel_parity.on_both_rungs
@pytest.mark.parametrize("kind", ["mask", "segments"])
def test_masked_keys_may_hold_anything(rung, kind):
    attention_laws.check_masked_keys(rung, kind)


@pytest.mark.parametrize("rung", ["xla", pytest.param("triton_interpret", marks=pytest.mark.thorough), "lowered"])
def test_masked_values_of_a_gate_may_hold_anything(rung):
    attention_laws.check_masked_values_of_a_gate(rung)


@kernel_parity.on_both_rungs
def test_any_split_into_calls_gives_the_same(rung):
    attention_laws.check_continuation(rung)


@kernel_parity.on_both_rungs
@pytest.mark.parametrize("tiles", kernel_parity.first(attention_laws.LAUNCH_SHAPES, 2))
def test_every_launch_shape_gives_the_same(rung, tiles):
    attention_laws.check_launch_shape(rung, tiles)


def test_value_tiles_as_heads_are_the_same_function():
    """`jax.nn.dot_product_attention` as an independent check of oracle and reference."""
    r = cases.rng(0)
    q, k, v = (cases.normal(r, 2, 24, 3, size) for size in (4, 4, 10))
    expected = oracle_numpy.chunked_attention(q, k, v, chunk_size=8)
    for found in (
        attention_by_value_tiles(*map(jnp.asarray, (q, k, v)), chunk_size=8),
        chunked_attention(*map(jnp.asarray, (q, k, v)), chunk_size=8, implementation="xla"),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
