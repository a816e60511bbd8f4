"""chunked_attention kernels against XLA reference and oracles: interpreted by Pallas, and as executed lowered IR."""

import jax.numpy as jnp
import numpy as np
import pytest

from bench.attention_baseline import attention_by_value_tiles
from pallas_kernels import chunked_attention
from reference import oracle_numpy
from tests import cases, kernel_parity


@pytest.mark.parametrize(
    "spec", kernel_parity.everyday(kernel_parity.ATTENTION, "one token", "masked", "packed"), ids=str
)
def test_interpreted(spec):
    kernel_parity.check(spec, "triton_interpret")


@pytest.mark.parametrize("spec", kernel_parity.ATTENTION, ids=str)
def test_lowered(spec):
    kernel_parity.check(spec, "lowered")


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
