"""Every TimestepNorm kernel lowers for CUDA on every spec, with the launches and addresses it should have."""

import jax
import jax.numpy as jnp
import pytest

from bench import ops
from bench.inspect.lowering import lower, triton_calls
from bench.inspect.triton_ir import check_addresses
from pallas_kernels import kernels_in, use_tiles
from pallas_kernels.timestep_norm.launch import BACKWARD, FORWARD
from pallas_kernels.timestep_norm.specs import LONG, PARITY, PRESETS, Spec

SPECS = (*PARITY, *LONG, *PRESETS)


def abstract(spec: Spec) -> dict[str, jax.ShapeDtypeStruct]:
    cell = jax.ShapeDtypeStruct((spec.batch, spec.groups), jnp.float32)
    return {**spec.arrays(), "dmean": cell, "dvar": cell}


def lowered(spec: Spec, target: str = "sm_90"):
    tiles = {} if spec.tiles is None else {FORWARD: spec.tiles, BACKWARD: spec.tiles}
    with use_tiles(**tiles):
        return lower(ops.of(spec).values(spec, "triton"), abstract(spec), target=target)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_lowers(spec):
    program = lowered(spec)
    names = kernels_in(program)
    grids = {call.name: call.grid for call in triton_calls(program)}
    expected = [(f"{name}_totals", name) if grids[name][2] > 1 else (name,) for name in (FORWARD, BACKWARD)]
    assert names == (*expected[0], *expected[1])
    assert all(grid[:2] == (spec.groups, spec.batch) for grid in grids.values())


@pytest.mark.parametrize("target", ["sm_80", "sm_89", "sm_90", "sm_100", "sm_120"])
def test_few_programs_make_chunks_until_the_gpu_is_full(target):
    few, many = (Spec("", batch, 32768, 1024, 32, dtype=jnp.bfloat16) for batch in (1, 8))
    for spec, programs in ((few, 32), (many, 256)):
        (grid,) = (call.grid for call in triton_calls(lowered(spec, target)) if call.name == FORWARD)
        assert grid[0] * grid[1] == programs
        assert (grid[2] > 1) == (spec is few)


@pytest.mark.parametrize("features", [{}, {"segments": True}])
def test_addresses_of_arrays_of_almost_2_31_elements(features):
    """The largest arrays that are let in: no offset wraps around in 32 bits, none is out of bounds."""
    spec = Spec("huge", 2047, 1024, 1024, 32, dtype=jnp.bfloat16, statistics="all_features", **features)
    assert 2**31 - 2**22 < spec.batch * spec.length * spec.features < 2**31
    for call in triton_calls(lowered(spec)):
        report = check_addresses(call, random_cells=1)
        largest = max(report.buffers, key=lambda use: use.elements)
        assert largest.highest > 2**31 - 2**22
        assert not report.faults
