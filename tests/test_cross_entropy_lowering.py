"""Every kernel of linear_cross_entropy lowers for CUDA on every preset, with the launches, addresses and products it
should have."""

import jax.numpy as jnp
import pytest

from bench import ops
from bench.inspect.lowering import lower, triton_calls
from bench.inspect.triton_ir import check_addresses
from bench.inspect.triton_ir.mlir import parse
from bench.ops.cross_entropy import DHIDDEN, DWEIGHT, FORWARD, KERNELS
from pallas_kernels.linear_cross_entropy.specs import PRESETS, Spec
from tests import kernel_parity


def calls(spec: Spec, target: str = "sm_90"):
    function, arrays = ops.of(spec).program(spec, "forward+backward", "triton")
    return {call.name: call for call in triton_calls(lower(function, arrays, target=target))}


@pytest.mark.parametrize("spec", kernel_parity.first(PRESETS, 1), ids=str)  # those of parity are lowered to be executed
def test_lowers(spec):
    found = calls(spec)
    assert set(found) == set(KERNELS)
    assert all(len(call.aliases) == (name == DWEIGHT and spec.so_far) for name, call in found.items())
    for call in found.values():
        check_addresses(call, random_cells=2)


def test_the_vocabulary_is_split_where_a_gpu_would_be_half_empty():
    few, many = (Spec("", 4096, features, 32000, dtype=jnp.bfloat16) for features in (512, 2048))
    assert calls(few)[DHIDDEN].grid == (2, 32, 2)  # of 132 multiprocessors
    assert calls(many)[DHIDDEN].grid == (8, 32, 1)


@pytest.mark.thorough
def test_addresses_of_almost_2_31_logits():
    """The most that are let in: no offset wraps around in 32 bits, none is out of bounds."""
    for call in calls(Spec("huge", 2**16 - 1, 16, 2**15, dtype=jnp.bfloat16)).values():
        report = check_addresses(call, random_cells=1)
        largest = max(report.buffers, key=lambda use: use.elements)
        assert largest.elements > 2**31 - 2**16
        assert call.name != FORWARD or largest.highest > 2**31 - 2**22
        assert not report.faults


def test_products_of_float32():
    """Six products of bfloat16 parts for each: never what the hardware does by default."""
    for call in calls(Spec("", 64, 64, 64)).values():
        products = [line for line in str(parse(call.bytecode)).splitlines() if "tt.dot" in line]
        assert len(products) == 6
        assert all(line.count("bf16>") == 2 for line in products)
