"""Every ComplexEMA kernel lowers for CUDA on every spec, with the launches and addresses it should have."""

import jax.numpy as jnp
import pytest

from bench import ops, parity
from bench.inspect.lowering import lower, triton_calls
from bench.inspect.triton_ir import check_addresses
from pallas_kernels import kernels_in
from pallas_kernels.complex_ema.launch import BACKWARD, ENDS, FORWARD, JOIN
from pallas_kernels.complex_ema.specs import LONG, PARITY, PRESETS, Spec


def lowered(spec: Spec, target: str = "sm_90"):
    with parity.tiles_of(spec):
        return lower(ops.of(spec).values(spec, "triton"), spec.arrays(), target=target)


@pytest.mark.parametrize("spec", [*PARITY, *LONG, *PRESETS], ids=str)
def test_lowers(spec):
    program = lowered(spec)
    calls = {call.name: call for call in triton_calls(program)}
    before = (ENDS, JOIN) if calls[FORWARD].grid[1] > 1 else ()
    back = (*before, BACKWARD)
    assert kernels_in(program) == (*before, FORWARD, *back, *(back if spec.returned else ()))
    blocks, chunks, batch = calls[BACKWARD].grid
    assert (blocks, batch) == (-(-spec.features // 32), spec.batch)
    if before:
        assert calls[ENDS].grid == (blocks, chunks - 1, batch)


@pytest.mark.parametrize("target", ["sm_80", "sm_89", "sm_90", "sm_100", "sm_120"])
def test_chunks_fill_the_gpu_and_are_never_long(target):
    few, many = (Spec("", batch, 32768, 1024, 4, dtype=jnp.bfloat16) for batch in (1, 8))
    for spec in (few, many):
        (grid,) = (call.grid for call in triton_calls(lowered(spec, target)) if call.name == FORWARD)
        assert 32768 / grid[1] <= 256
        assert grid[0] * grid[1] * grid[2] >= 16 * 100


@pytest.mark.parametrize("features", [{}, {"segments": True, "mask": True}])
def test_addresses_of_arrays_of_almost_2_31_elements(features):
    """The largest arrays that are let in: no offset wraps around in 32 bits, none is out of bounds."""
    spec = Spec("huge", 2047, 1024, 1024, 2, dtype=jnp.bfloat16, **features)
    for call in triton_calls(lowered(spec)):
        report = check_addresses(call, random_cells=1)
        assert not report.faults
        if call.name in (FORWARD, BACKWARD):
            assert max(report.buffers, key=lambda use: use.elements).highest > 2**31 - 2**22
