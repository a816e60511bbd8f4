"""What the kernels of normalized_rotary compile to, without a GPU, and why there is a pass of its own.

Everyday: the headline problem on the H100. `pytest -m all_targets`: every preset on every architecture.
"""

import pytest

from bench import inspect_rotary, ops
from bench.figures import figures
from bench.inspect import TARGETS, compile_program, tools
from bench.ops import rotary
from bench.parity import tiles_of
from bench.programs import MODES
from pallas_kernels.normalized_rotary.specs import HEADLINE, PARITY, PRESETS

pytestmark = pytest.mark.skipif(tools.missing() is not None, reason=str(tools.missing()))

Z = 2 * HEADLINE.batch * HEADLINE.length * HEADLINE.heads * HEADLINE.depth  # bytes of one array


@pytest.mark.parametrize(("mode", "arrays", "launches"), [(MODES[0], 3, 1), (MODES[1], 7, 3)])
def test_each_array_is_moved_once(mode, arrays, launches):
    """z, q, k; backward z, dq, dk, dz; beside them parameters, positions and sums over tokens."""
    found = figures(HEADLINE, mode, "triton", "sm_90", detailed=True)
    assert arrays * Z < found.bytes_moved < 1.04 * arrays * Z
    assert found.bytes_issued is not None
    assert found.bytes_cached is not None
    assert found.bytes_issued - found.bytes_cached < 1.04 * arrays * Z
    assert found.launches == launches
    assert not any(kernel.spill_bytes or kernel.stack_bytes for kernel in found.kernels)
    assert found.bytes_moved < 0.7 * figures(HEADLINE, mode, "xla", "sm_90").bytes_moved


@pytest.mark.all_targets
@pytest.mark.parametrize("mode", MODES)
def test_a_pass_costs_little_beside_making_keys_again_and_again(mode):
    by_xla, by_kernel, inside = inspect_rotary.forms(mode)
    assert by_kernel.bytes_moved < 0.93 * by_xla.bytes_moved
    assert inside.bytes_moved < by_kernel.bytes_moved < inside.bytes_moved + 8 * Z
    assert inside.elements > 30 * by_kernel.elements
    times = [form.issue_us for form in (inside, by_kernel) if form.issue_us is not None]
    assert times[0] > 30 * times[1]


@pytest.mark.all_targets
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("spec", PRESETS, ids=str)
def test_presets_compile(target, spec):
    function, arrays = rotary.program(spec, MODES[1], "triton")
    compiled = compile_program(function, arrays, target=target, kernels="pallas")
    assert set(compiled.pallas_kernels) == set(rotary.KERNELS)
    for kernel in compiled.kernels.values():
        assert kernel.spill_bytes == 0
        assert kernel.occupancy.blocks >= 2


@pytest.mark.all_targets
@pytest.mark.parametrize("spec", PARITY, ids=str)
def test_what_parity_runs_compiles_too(spec):
    with tiles_of(spec):
        compiled = compile_program(ops.of(spec).values(spec, "triton"), spec.arrays(), kernels="pallas")
    assert set(compiled.pallas_kernels) == set(rotary.KERNELS)
