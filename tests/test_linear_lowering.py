"""Every kernel of fused_linear lowers for CUDA on every preset, with the launches, addresses and products it should
have."""

import jax.numpy as jnp
import pytest

from bench import ops
from bench.inspect.lowering import lower, triton_calls
from bench.inspect.triton_ir import check_addresses
from bench.inspect.triton_ir.mlir import parse
from bench.ops.linear import KERNELS
from pallas_kernels.fused_linear.launch import DW, FORWARD
from pallas_kernels.fused_linear.specs import PRESETS, Spec


def calls(spec: Spec, target: str = "sm_90"):
    function, arrays = ops.of(spec).program(spec, "forward+backward", "triton")
    return {call.name: call for call in triton_calls(lower(function, arrays, target=target))}


@pytest.mark.parametrize("spec", PRESETS, ids=str)  # those of parity are lowered to be executed
def test_lowers(spec):
    found = calls(spec)
    assert list(found) == list(KERNELS)
    assert all(call.grid[2] == 1 or name == DW for name, call in found.items())
    for call in found.values():
        check_addresses(call, random_cells=2)


def test_tokens_are_split_where_a_gpu_would_be_half_empty():
    few, many = (Spec("", 8, 2048, 512, outputs, dtype=jnp.bfloat16) for outputs in (1024, 4096))
    assert calls(few)[DW].grid == (4, 8, 4)  # of 132 multiprocessors
    assert calls(many)[DW].grid == (4, 32, 1)


def test_addresses_of_arrays_of_almost_2_31_elements():
    """The largest that are let in: no offset wraps around in 32 bits, none is out of bounds."""
    spec = Spec("huge", 2047, 1024, 64, 1024, dtype=jnp.bfloat16, bias=True, residual=True)
    for call in calls(spec).values():
        report = check_addresses(call, random_cells=1)
        largest = max(report.buffers, key=lambda use: use.elements)
        assert largest.elements > 2**31 - 2**22
        assert call.name != FORWARD or largest.highest > 2**31 - 2**22
        assert not report.faults


def test_products_of_float32():
    """Six products of bfloat16 parts for each: never what the hardware does by default."""
    spec = Spec("", 1, 64, 64, 64)
    for call in calls(spec).values():
        products = [line for line in str(parse(call.bytecode)).splitlines() if "tt.dot" in line]
        assert len(products) == 6
        assert all(line.count("bf16>") == 2 for line in products)
