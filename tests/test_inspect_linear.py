"""What the kernels of fused_linear compile to, without a GPU.

Everyday: the layer with every option, on the H100. `pytest -m all_targets`: every preset on every architecture.
"""

import pytest

from bench import ops
from bench.figures import figures
from bench.inspect import TARGETS, compile_program, tools
from bench.ops import linear
from bench.parity import tiles_of
from bench.programs import MODES
from pallas_kernels.fused_linear.specs import PARITY, PRESETS
from tests.test_inspect_attention import MMA

pytestmark = pytest.mark.skipif(tools.missing() is not None, reason=str(tools.missing()))

EVERYTHING = next(spec for spec in PRESETS if spec.name == "2560 to 512")
TOKENS = EVERYTHING.batch * EVERYTHING.length
X, Y = (2 * TOKENS * size for size in (EVERYTHING.features, EVERYTHING.outputs))  # bytes


@pytest.mark.parametrize(("mode", "x", "y"), [(MODES[0], 1, 2), (MODES[1], 4, 6)])
def test_each_array_is_moved_once_for_each_kernel(mode, x, y):
    """Forward x, residual, y; backward x, dy, dx, then x, dy; dy copied to dresidual."""
    found = figures(EVERYTHING, mode, "triton", "sm_90")
    weights = 12 * EVERYTHING.features * EVERYTHING.outputs  # read in float32 and rounded, read; its gradient
    sums = 8 * EVERYTHING.features * TOKENS // 128  # of each block of tokens, for the gradient of x_bias
    assert x * X + y * Y < found.bytes_moved < 1.02 * (x * X + y * Y + weights + sums)
    assert not any(kernel.spill_bytes or kernel.stack_bytes for kernel in found.kernels)
    assert found.bytes_moved < 0.8 * figures(EVERYTHING, mode, "xla", "sm_90").bytes_moved


def test_tensor_cores_of_the_architecture():
    function, arrays = linear.program(EVERYTHING, MODES[1], "triton")
    compiled = compile_program(function, arrays, kernels="pallas")
    assert set(compiled.pallas_kernels) == set(linear.KERNELS)
    for kernel in compiled.kernels.values():
        assert "wgmma.mma_async" in kernel.ptx
        assert [opcode for opcode in kernel.histogram if opcode.startswith("LDGSTS")]  # loads ahead


@pytest.mark.all_targets
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("spec", PRESETS, ids=str)
def test_presets_compile(target, spec):
    function, arrays = linear.program(spec, MODES[1], "triton")
    compiled = compile_program(function, arrays, target=target, kernels="pallas")
    assert set(compiled.pallas_kernels) == set(linear.KERNELS)
    for kernel in compiled.kernels.values():
        assert [opcode for opcode in kernel.histogram if opcode.startswith(MMA[target])]
        assert kernel.occupancy.blocks >= 1
        assert kernel.spill_bytes == 0


@pytest.mark.all_targets
@pytest.mark.parametrize("spec", PARITY, ids=str)
def test_what_parity_runs_compiles_too(spec):
    with tiles_of(spec):
        compiled = compile_program(ops.of(spec).values(spec, "triton"), spec.arrays(), kernels="pallas")
    assert set(compiled.pallas_kernels) == {*linear.KERNELS, *(["round_weights"] if spec.rounded else [])}
