"""What the kernels of feature_norm compile to, without a GPU.

Everyday: a model's norms on the H100. `pytest -m all_targets`: every preset on every architecture.
"""

import pytest

from bench import ops
from bench.figures import figures
from bench.inspect import TARGETS, compile_program, tools
from bench.inspect.lowering import lower, triton_calls
from bench.inspect.triton_ir import check_addresses
from bench.ops import features
from bench.parity import tiles_of
from bench.programs import MODES
from pallas_kernels.feature_norm.specs import PARITY, PRESETS, Spec

SPECS = {spec.name: spec for spec in PRESETS}
needs_tools = pytest.mark.skipif(tools.missing() is not None, reason=str(tools.missing()))


@needs_tools
@pytest.mark.parametrize("name", ["model S", pytest.param("model S, RMS", marks=pytest.mark.all_targets)])
def test_each_array_is_moved_once(name):
    """x, y; backward x, dy, dx; beside them parameters and sums over tokens, added up in one launch."""
    spec = SPECS[name]
    x = 2 * spec.batch * spec.length * spec.features
    found = figures(spec, MODES[1], "triton", "sm_90", detailed=True)
    assert 5 * x < found.bytes_moved < 1.04 * 5 * x
    assert found.bytes_issued is not None
    assert found.bytes_cached is not None
    assert found.bytes_issued - found.bytes_cached < 1.04 * 5 * x
    assert found.launches == 3
    assert not any(kernel.spill_bytes or kernel.stack_bytes for kernel in found.kernels)
    by_xla = figures(spec, MODES[1], "xla", "sm_90")
    assert found.launches <= by_xla.launches // 2
    assert found.bytes_moved < 0.75 * by_xla.bytes_moved


@pytest.mark.thorough
def test_addresses_of_arrays_of_almost_2_31_elements():
    """The largest that are let in: no offset wraps around in 32 bits, none is out of bounds."""
    function, arrays = features.program(Spec("huge", 2047, 1024, 1024), MODES[1], "triton")
    calls = list(triton_calls(lower(function, arrays, target="sm_90")))
    assert [call.name for call in calls] == list(features.KERNELS)
    for call in calls:
        report = check_addresses(call, random_cells=1)
        largest = max(report.buffers, key=lambda use: use.elements)
        assert largest.elements > 2**31 - 2**22
        assert not report.faults


@needs_tools
@pytest.mark.all_targets
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("spec", PRESETS, ids=str)
def test_presets_compile(target, spec):
    function, arrays = features.program(spec, MODES[1], "triton")
    compiled = compile_program(function, arrays, target=target, kernels="pallas")
    assert set(compiled.pallas_kernels) == set(features.KERNELS)
    for kernel in compiled.kernels.values():
        assert kernel.spill_bytes == 0
        assert kernel.occupancy.blocks >= (2 if spec.features <= 4096 else 1)


@needs_tools
@pytest.mark.all_targets
@pytest.mark.parametrize("spec", PARITY, ids=str)
def test_what_parity_runs_compiles_too(spec):
    with tiles_of(spec):
        compiled = compile_program(ops.of(spec).values(spec, "triton"), spec.arrays(), kernels="pallas")
    assert set(compiled.pallas_kernels) == set(features.KERNELS)
