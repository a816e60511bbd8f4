"""What the kernels of linear_cross_entropy compile to, without a GPU.

Everyday: a chunk of a model's loss, on the H100. `pytest -m all_targets`: every preset on every architecture.
"""

import jax
import jax.numpy as jnp
import pytest

from bench import ops
from bench.figures import figures
from bench.inspect import TARGETS, compile_program, tools
from bench.ops import cross_entropy
from bench.parity import tiles_of
from bench.programs import MODES
from megalodon_jax.fused_loss import weighted_loss
from pallas_kernels.linear_cross_entropy.specs import PARITY, PRESETS
from tests.test_inspect_attention import MMA

pytestmark = pytest.mark.skipif(tools.missing() is not None, reason=str(tools.missing()))

HEAD = next(spec for spec in PRESETS if spec.name == "512 to 32000")
LOGITS, HIDDEN, WEIGHT = (
    2 * a * b
    for a, b in ((HEAD.length, HEAD.vocabulary), (HEAD.length, HEAD.features), (HEAD.features, HEAD.vocabulary))
)  # bytes


def test_logits_are_written_once_and_read_once_for_each_gradient():
    found = figures(HEAD, MODES[1], "triton", "sm_90")
    operands = 2 * (HIDDEN + WEIGHT)  # hidden, weight; weight, hidden
    sums = 4 * (2 * WEIGHT) + 5 * HIDDEN  # so_far copied, read; written; the splits of dhidden, and it
    partial = 5 * 4 * HEAD.length * HEAD.vocabulary // 128  # maxima and sums of each block: written, read
    least, tables = 3 * LOGITS + operands, sums + partial
    assert least < found.bytes_moved < 1.02 * (least + tables)
    assert found.bytes_moved < 0.7 * figures(HEAD, MODES[1], "xla", "sm_90").bytes_moved
    assert found.temporary_bytes < 1.1 * LOGITS
    assert len(found.kernels) == 3
    assert not any(kernel.spill_bytes or kernel.stack_bytes for kernel in found.kernels)


@pytest.mark.thorough
def test_losses_alone_launch_one_kernel():
    function, arrays = cross_entropy.program(HEAD, MODES[0], "triton")
    compiled = compile_program(function, arrays, kernels="none")
    kernels = [launch.kernel for launch in compiled.traffic.launches if launch.kind == "pallas"]
    assert kernels == list(cross_entropy.KERNELS[:1])


def test_tensor_cores_of_the_architecture():
    function, arrays = cross_entropy.program(HEAD, MODES[1], "triton")
    compiled = compile_program(function, arrays, kernels="pallas")
    for kernel in compiled.kernels.values():
        assert "wgmma.mma_async" in kernel.ptx
        assert [opcode for opcode in kernel.histogram if opcode.startswith("LDGSTS")]  # loads ahead


@pytest.mark.thorough
def test_a_scan_over_chunks_copies_no_gradient():
    """The sum that a scan carries is added to where it lies, and no chunk has logits twice in memory."""
    S = jax.ShapeDtypeStruct
    rows = 4, HEAD.length
    arrays = S((*rows, HEAD.features), jnp.bfloat16), S((HEAD.vocabulary, HEAD.features), jnp.float32)
    arrays += S(rows, jnp.int32), S(rows, jnp.float32)
    loss = lambda *arrays: weighted_loss(*arrays, HEAD.length, jnp.float32, True)  # noqa: E731
    compiled = compile_program(jax.jit(jax.value_and_grad(loss, (0, 1))), *arrays, kernels="none")
    looped = [launch for launch in compiled.traffic.launches if launch.trips == rows[0]]
    assert [launch.kernel for launch in looped if launch.kind == "pallas"] == list(cross_entropy.KERNELS)
    assert max(launch.bytes for launch in looped if launch.kind != "pallas") < 3 * WEIGHT
    assert compiled.temporary_bytes < LOGITS + 8 * WEIGHT


@pytest.mark.all_targets
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("spec", PRESETS, ids=str)
def test_presets_compile(target, spec):
    function, arrays = cross_entropy.program(spec, MODES[1], "triton")
    compiled = compile_program(function, arrays, target=target, kernels="pallas")
    assert set(compiled.pallas_kernels) == set(cross_entropy.KERNELS)
    for kernel in compiled.kernels.values():
        assert [opcode for opcode in kernel.histogram if opcode.startswith(MMA[target])]
        assert kernel.occupancy.blocks >= 1
        assert kernel.spill_bytes == 0


@pytest.mark.all_targets
@pytest.mark.parametrize("spec", PARITY, ids=str)
def test_what_parity_runs_compiles_too(spec):
    with tiles_of(spec):
        compiled = compile_program(ops.of(spec).values(spec, "triton"), spec.arrays(), kernels="pallas")
    assert set(compiled.pallas_kernels) == set(cross_entropy.KERNELS)
