"""What the TimestepNorm kernels compile to, without a GPU: the static figures that they are held to.

Everyday: the headline problem on the H100. `pytest -m all_targets`: every preset on every architecture, and every spec
on the H100.
"""

import jax
import jax.numpy as jnp
import pytest

from bench import ops
from bench.figures import figures
from bench.inspect import TARGETS, compile_program, tools
from bench.norm_targets import verdicts
from bench.ops import norm
from bench.programs import MODES
from bench.work import nest
from pallas_kernels import use_tiles
from pallas_kernels.timestep_norm.specs import HEADLINE, PARITY, PRESETS

pytestmark = pytest.mark.skipif(tools.missing() is not None, reason=str(tools.missing()))

FORWARD, BOTH = MODES
STATISTIC = 4 * HEADLINE.batch * HEADLINE.groups * HEADLINE.length


@pytest.fixture(scope="module")
def headline():
    return {mode: figures(HEADLINE, mode, "triton", "sm_90", detailed=True) for mode in MODES}


@pytest.fixture(scope="module")
def kernels():
    """The kernels of forward+backward themselves."""
    function, arrays = norm.program(HEADLINE, BOTH, "triton")
    return compile_program(function, arrays, kernels="pallas").kernels


def test_bytes_moved(headline):
    assert headline[FORWARD].bytes_moved <= 0.15e9
    assert headline[BOTH].bytes_moved <= 0.38e9


def test_loads_and_stores_stay_close_to_operands_and_results(headline):
    for program in headline.values():
        assert program.bytes_issued <= 1.3 * program.bytes_moved
        for kernel in program.kernels:
            assert kernel.work.bytes_moved <= kernel.work.bytes_issued <= 1.3 * kernel.work.bytes_moved


def test_launches(headline):
    assert [kernel.name for kernel in headline[FORWARD].kernels] == ["timestep_norm_forward"]
    assert [kernel.name for kernel in headline[BOTH].kernels] == ["timestep_norm_forward", "timestep_norm_backward"]
    assert headline[FORWARD].launches == 1
    assert headline[BOTH].launches == 3  # the third sums dweight and dbias over the batch


def test_no_intermediate_is_larger_than_a_statistic_per_token(headline):
    assert headline[FORWARD].temporary_bytes <= STATISTIC // 1000
    assert headline[BOTH].largest_intermediate <= STATISTIC
    assert headline[BOTH].temporary_bytes <= 2.1 * STATISTIC


def test_memory_is_what_limits_every_kernel(headline):
    for program in headline.values():
        for kernel in program.kernels:
            assert kernel.work.issue_us < kernel.work.memory_us


def test_resources(headline):
    for program in headline.values():
        for kernel in program.kernels:
            assert (kernel.spill_bytes, kernel.stack_bytes) == (0, 0)
            assert kernel.shared_bytes <= 1024  # only sums across warps go through shared memory
            # batch x groups = 256 programs run at once on the 132 multiprocessors.
            assert kernel.blocks * TARGETS["sm_90"].multiprocessors >= HEADLINE.batch * HEADLINE.groups


def test_arithmetic(kernels):
    for kernel in kernels.values():
        # Neither Triton nor ptxas contracts a * b + c here: what was checked on CPU is rounded the same way.
        assert kernel.histogram["FFMA"] == 0
        assert kernel.histogram["MUFU"] > 0  # 1 / sqrt(variance), and divisions
        assert not [opcode for opcode in kernel.histogram if "MMA" in opcode or opcode in ("DADD", "DMUL", "DFMA")]
        assert not [opcode for opcode in kernel.histogram if opcode in ("LDL", "STL")]
        assert "fma." not in kernel.ptx
        assert "div.full.f32" in kernel.ptx  # within 2 units in the last place; div.approx is not
        assert "div.approx" not in kernel.ptx


def test_one_trip_of_the_main_loop_is_one_tile(headline, kernels):
    """The trip counts that times are modelled with: bfloat16 results are stored 16 bytes (8 elements) at once."""
    for found in headline[BOTH].kernels:
        kernel = kernels[found.name]
        (loop,) = nest(kernel, 1)
        assert [other for other in kernel.loops if not other.waits] == [loop]
        opcodes = [instruction.opcode for instruction in loop.instructions]
        wide = sum(opcode.startswith("STG") and opcode.endswith(".128") for opcode in opcodes)
        assert wide * 8 * found.threads == found.tile["tokens"] * HEADLINE.features // HEADLINE.groups
        assert found.work.tiles * found.tile["tokens"] == HEADLINE.length


def test_every_target_is_met(headline):
    found = verdicts(HEADLINE, headline)
    assert len(found) == 10
    assert all(verdict.met for verdict in found)


@pytest.mark.all_targets
@pytest.mark.parametrize("spec", PRESETS, ids=str)
@pytest.mark.parametrize("target", TARGETS)
def test_presets_compile_without_spills(target, spec):
    for mode in MODES:
        program = figures(spec, mode, "triton", target)
        assert program.kernels
        for kernel in program.kernels:
            assert kernel.spill_bytes == kernel.stack_bytes == 0
            assert kernel.blocks >= 1
            assert kernel.fused_multiply_adds == kernel.tensor_instructions == 0


@pytest.mark.all_targets
@pytest.mark.parametrize("spec", PARITY, ids=str)
def test_what_parity_runs_compiles_too(spec):
    cell = jax.ShapeDtypeStruct((spec.batch, spec.groups), jnp.float32)
    tiles = {} if spec.tiles is None else dict.fromkeys(("timestep_norm_forward", "timestep_norm_backward"), spec.tiles)
    with use_tiles(**tiles):
        program = ops.of(spec).values(spec, "triton")
        compiled = compile_program(program, {**spec.arrays(), "dmean": cell, "dvar": cell}, kernels="pallas")
    assert {"timestep_norm_forward", "timestep_norm_backward"} <= set(compiled.pallas_kernels)
    assert all(kernel.spill_bytes == 0 for kernel in compiled.kernels.values())


@pytest.mark.all_targets
@pytest.mark.parametrize("target", TARGETS)
def test_less_memory_traffic_than_xla_on_every_target(target):
    for mode in MODES:
        kernels, reference = (figures(HEADLINE, mode, implementation, target) for implementation in ("triton", "xla"))
        assert kernels.bytes_moved < 0.5 * reference.bytes_moved
        assert kernels.launches < 0.05 * reference.launches
        assert kernels.temporary_bytes < 0.2 * reference.temporary_bytes
