"""Every ComplexEMA kernel lowers for CUDA on every spec, with the launches and addresses it should have."""

import jax.numpy as jnp
import pytest

from bench import ops, parity
from bench.inspect.lowering import lower, triton_calls
from bench.inspect.triton_ir import check_addresses
from pallas_kernels import Tiles, compile_for, complex_ema, explain, kernels_in, use_tiles
from pallas_kernels._architecture import Architecture
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


def chunks(target: str, spec: Spec) -> tuple[int, int]:
    """Of the forward by itself and of the backward."""
    arrays, options = spec.arrays(), {"return_state": spec.returned, "implementation": "triton"}
    with compile_for(target):
        rows = explain(complex_ema, *(arrays[name] for name in ("x", "p", "q", "gamma", "omega")), **options).rows
    (row,) = (row for row in rows if row.chosen)
    forward, backward = row.launches
    return forward.tiles.num_chunks, backward.tiles.num_chunks


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (Spec("fills the GPU", 64, 4096, 4096, 4, dtype=jnp.bfloat16), (1, 16)),
        (Spec("fills it alone", 512, 256, 4096, 4, dtype=jnp.bfloat16), (1, 1)),
        (Spec("headline", 8, 4096, 1024, 4, dtype=jnp.bfloat16), (8, 16)),
        (Spec("state", 8, 4096, 1024, 4, dtype=jnp.bfloat16, returned=True), (16, 16)),
        (Spec("float32", 64, 4096, 4096, 4), (64, 64)),
        (Spec("short", 1, 100, 1024, 4), (2, 2)),
        (Spec("whole stretches only", 5, 1000, 1024, 4, dtype=jnp.bfloat16), (11, 6)),
        (Spec("one step", 8, 1, 4096, 4), (1, 1)),
        (Spec("longer than a grid", 1, 2**23, 32, 4), (52429, 52429)),
    ],
    ids=str,
)
def test_chunks(spec, expected):
    """One where batch x features fills the GPU and nothing in float32 tells, or the sequence is short."""
    assert chunks("sm_90", spec) == expected


@pytest.mark.parametrize("target", ["sm_80", "sm_89", "sm_90", "sm_100", "sm_120"])
def test_programs_fill_the_gpu(target):
    for batch in (1, 8):
        spec = Spec("", batch, 32768, 1024, 4, dtype=jnp.bfloat16)
        assert 32 * batch * min(chunks(target, spec)) >= 8 * Architecture.of(target).multiprocessors


def test_more_chunks_than_a_grid_has_room_for_are_refused():
    spec = Spec("", 1, 2**23, 32, 4)
    with use_tiles(complex_ema_forward=Tiles(8, 65536, 1)), pytest.raises(ValueError, match="at most 65535"):
        chunks("sm_90", spec)


@pytest.mark.parametrize("features", [{}, {"segments": True, "mask": True}])
def test_addresses_of_arrays_of_almost_2_31_elements(features):
    """The largest arrays that are let in: no offset wraps around in 32 bits, none is out of bounds."""
    spec = Spec("huge", 2047, 1024, 1024, 2, dtype=jnp.bfloat16, **features)
    for call in triton_calls(lowered(spec)):
        report = check_addresses(call, random_cells=1)
        assert not report.faults
        if call.name in (FORWARD, BACKWARD):
            assert max(report.buffers, key=lambda use: use.elements).highest > 2**31 - 2**22
