"""Deviceless compilation of toy kernels: what the compilers of the extra `inspect` make of them.

Figures that move with compiler versions are asserted with margins, and only where the pinned versions are installed.
"""

import contextlib
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from bench.inspect import (
    TARGETS,
    CompilerFailed,
    ToolsMissing,
    cache,
    compile_in_subprocess,
    compile_program,
    model,
    tools,
)
from bench.inspect import compile as compiler
from pallas_kernels._settings import current

pytestmark = [
    pytest.mark.skipif(tools.missing() is not None, reason=str(tools.missing())),
    pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning"),
]
pinned = pytest.mark.skipif(tools.unpinned() is not None, reason=str(tools.unpinned()))

ROWS, WIDTH = 256, 512
BYTES = ROWS * WIDTH * 4
X = jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32)


@pytest.fixture(autouse=True)
def _fresh_cache(monkeypatch, tmp_path):
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "artefacts"))


@pytest.fixture
def no_compiler(monkeypatch):
    """From the call on, compiling is an error."""

    def forbid():
        def compiled(*_):
            raise AssertionError("compiled again")

        monkeypatch.setattr(compiler, "_compile", compiled)

    return forbid


def _device():
    """What jax 0.11 and later need around the bind of a kernel to lower it for a GPU that is not there."""
    if jax.__version_info__ < (0, 11):
        return contextlib.nullcontext()
    from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

    target = TARGETS[current().target]
    kind = "NVIDIA RTX PRO 6000" if target.name == "sm_120" else target.card  # jax cannot name every card
    device = AbstractDevice(device_kind=kind, num_cores=None, platform="cuda")
    return use_abstract_mesh(AbstractMesh((1,), ("_",), abstract_device=device))


def _rows(body, name, *arrays, rows=4, warps=4):
    """A kernel over blocks of rows."""
    block = pl.BlockSpec((rows, arrays[0].shape[1]), lambda i: (i, 0))
    call = pl.pallas_call(
        body,
        name=name,
        out_shape=jax.ShapeDtypeStruct(arrays[0].shape, arrays[0].dtype),
        grid=(arrays[0].shape[0] // rows,),
        in_specs=[block] * len(arrays),
        out_specs=block,
        compiler_params=plt.CompilerParams(num_warps=warps, num_stages=1),
    )
    with _device():
        return call(*arrays)


def row_norm(x):
    def body(x_ref, y_ref):
        x = x_ref[...]
        y_ref[...] = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-5)

    return _rows(body, "row_norm", x)


def mul_add(x, y, z):
    def body(x_ref, y_ref, z_ref, o_ref):
        o_ref[...] = x_ref[...] * y_ref[...] + z_ref[...]

    return _rows(body, "mul_add", x, y, z)


def fused_mul_add(x, y, z):
    def body(x_ref, y_ref, z_ref, o_ref):
        shape = jax.ShapeDtypeStruct(x_ref.shape, jnp.float32)
        o_ref[...] = plt.elementwise_inline_asm(
            "fma.rn.f32 $0, $1, $2, $3;",
            args=(x_ref[...], y_ref[...], z_ref[...]),
            constraints="=f,f,f,f",
            pack=1,
            result_shape_dtypes=[shape],
        )[0]

    return _rows(body, "fused_mul_add", x, y, z)


def abort(x):
    os.abort()


def test_a_row_norm():
    program = compile_program(jax.jit(row_norm), X)
    assert (program.launches, program.bytes_moved) == (1, 2 * BYTES)
    assert (program.argument_bytes, program.output_bytes, program.temporary_bytes) == (BYTES, BYTES, 0)
    assert program.largest_intermediate is None
    assert program.pallas_kernels == ("row_norm",)
    assert list(program.kernels) == ["row_norm"]
    kernel = program.kernels["row_norm"]
    assert (kernel.grid, kernel.threads, kernel.is_pallas, kernel.is_gemm) == ((ROWS // 4, 1, 1), 128, True, False)
    assert (kernel.spill_bytes, kernel.stack_bytes, kernel.loops) == (0, 0, ())
    assert kernel.shared_bytes >= 4 * 4  # the reduction across the warps of a row
    assert ".entry row_norm(" in kernel.ptx
    assert "MUFU.RSQ" in kernel.sass
    assert kernel.histogram["LDG"] == ROWS * WIDTH // 64 // 128 // 4  # 16 bytes each
    assert kernel.occupancy.fraction > 0.5


@pinned
def test_exact_figures_of_the_pinned_compilers():
    # Also what a compiler with its optimiser off (as XLA_FLAGS of this suite asks for the CPU) would miss: 40 and 183.
    kernel = compile_program(row_norm, X).kernels["row_norm"]
    assert kernel.registers == pytest.approx(32, abs=4)
    assert len(kernel.instructions) == pytest.approx(154, abs=15)


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_compiles(target):
    kernel = compile_program(row_norm, X, target=target).kernels["row_norm"]
    assert f".target {TARGETS[target].assembler_arch}\n" in kernel.ptx
    assert kernel.spill_bytes == 0
    assert 0.5 <= kernel.occupancy.fraction <= 1


def test_two_kernels_and_what_lies_between():
    def program(x, y):
        return mul_add(row_norm(x), row_norm(y), y)

    found = compile_program(program, X, X)
    assert found.pallas_kernels == ("row_norm", "mul_add")
    assert set(found.kernels) == {"row_norm", "mul_add"}
    assert (found.launches, found.bytes_moved) == (3, (2 + 2 + 4) * BYTES)
    assert [launch.read for launch in found.launches_of("mul_add")] == [3 * BYTES]
    assert len(found.launches_of("row_norm")) == 2
    assert found.temporary_bytes >= BYTES
    assert found.largest_intermediate.bytes == BYTES
    assert found.largest_intermediate.shape == (ROWS, WIDTH)


def test_launches_in_a_loop_count_their_trips():
    def program(x):
        return jax.lax.scan(lambda carry, _: (row_norm(carry), None), x, None, length=7)[0]

    found = compile_program(program, X, kernels="none")
    assert found.kernels == {}
    (norm,) = found.launches_of("row_norm")
    assert (norm.trips, norm.bytes) == (7, 7 * 2 * BYTES)
    assert found.traffic.unknown_loops == ()
    # The argument is copied before the loop, and the carry in it: a kernel's result is a buffer of its own.
    copies = [launch for launch in found.traffic.launches if launch.kind == "copy" and launch.read == BYTES]
    assert sorted(launch.trips for launch in copies) == [1, 7]
    # Counter and condition move a few bytes a trip.
    assert 0 < found.bytes_moved - (2 * 7 + 2 * 7 + 2) * BYTES < 8 * 64


def test_a_loop_of_unknown_length_is_reported():
    def program(x, n):
        return jax.lax.while_loop(lambda s: s[0] < n, lambda s: (s[0] + 1, row_norm(s[1])), (0, x))[1]

    found = compile_program(program, X, jax.ShapeDtypeStruct((), jnp.int32), kernels="pallas")
    assert len(found.traffic.unknown_loops) == 1
    assert found.launches_of("row_norm")[0].trips == 1
    assert list(found.kernels) == ["row_norm"]


def test_spills_are_seen():
    # All of a row has to be kept until its sum is known: 512 registers a thread, and there are 255.
    wide = jax.ShapeDtypeStruct((1, 2**14), jnp.float32)

    def program(x):
        def body(x_ref, y_ref):
            x = x_ref[...]
            y_ref[...] = x * jnp.sum(x)

        return _rows(body, "spilling", x, rows=1, warps=1)

    kernel = compile_program(program, wide).kernels["spilling"]
    assert kernel.spill_bytes >= 2 * 4 * (512 - 255)
    assert kernel.stack_bytes > 0
    assert kernel.histogram["STL"] > 0


def test_the_lowering_contracts_nothing():
    separate = compile_program(mul_add, X, X, X).kernels["mul_add"]
    elements = ROWS * WIDTH // 64 // 128  # per thread
    assert (separate.histogram["FMUL"], separate.histogram["FADD"], separate.histogram["FFMA"]) == (
        elements,
        elements,
        0,
    )
    fused = compile_program(fused_mul_add, X, X, X).kernels["fused_mul_add"]
    assert (fused.histogram["FMUL"], fused.histogram["FADD"], fused.histogram["FFMA"]) == (0, 0, elements)


def test_the_model_of_a_kernel_with_a_loop():
    def program(x, n):
        def body(x_ref, n_ref, y_ref):
            x = x_ref[...]
            y_ref[...] = jax.lax.fori_loop(0, n_ref[0], lambda _, y: y * x + 0.5, x)

        block = pl.BlockSpec((4, WIDTH), lambda i: (i, 0))
        call = pl.pallas_call(
            body,
            name="looping",
            out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
            grid=(ROWS // 4,),
            in_specs=[block, pl.BlockSpec((1,), lambda i: (0,))],
            out_specs=block,
            compiler_params=plt.CompilerParams(num_warps=4, num_stages=1),
        )
        with _device():
            return call(x, n)

    found = compile_program(program, X, jax.ShapeDtypeStruct((1,), jnp.int32))
    kernel = found.kernels["looping"]
    loops = [loop for loop in kernel.loops if loop.depth == 1]
    assert all(loop.histogram["FMUL"] % 16 == 0 for loop in loops)  # 16 elements a thread, perhaps unrolled
    assert sum(loop.histogram["FMUL"] for loop in loops) >= 16
    moved = sum(launch.bytes for launch in found.launches_of("looping"))
    assert moved == 2 * BYTES + 4
    with pytest.raises(ValueError, match="trips must give the trip count of the loop at 0x"):
        model(kernel, moved_bytes=moved)
    short = model(kernel, moved_bytes=moved, trips={loop.header: 1 for loop in kernel.loops})
    long = model(kernel, moved_bytes=moved, trips={loop.header: 1000 for loop in kernel.loops})
    assert short.memory_bound
    assert not long.memory_bound
    assert long.unit == "issue"
    # 64 blocks of 4 warps, one to a multiprocessor: 4 warps issue 1000 times the loop at 4 instructions a clock.
    issued = sum(len(loop.instructions) for loop in loops)
    assert long.issue_us - short.issue_us == pytest.approx(999 * issued / 1755, rel=0.01)


def test_matmuls_left_to_xla_make_no_claim_about_time():
    found = compile_program(lambda x, w: row_norm(x) @ w, X, jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32))
    gemms = [kernel for kernel in found.kernels.values() if kernel.is_gemm]
    assert gemms
    with pytest.raises(ValueError, match="no GPU has tuned"):
        model(gemms[0], moved_bytes=1)


def test_the_cache_is_used_and_not_trusted(no_compiler, monkeypatch):
    first = compile_program(row_norm, X)
    (entry,) = cache.directory().iterdir()
    whole = entry.read_bytes()
    entry.write_bytes(whole[: len(whole) // 2])
    assert compile_program(row_norm, X).artefacts == first.artefacts  # compiled again
    assert cache.read(entry) == first.artefacts  # whole again; only the compilers' time may differ
    kept = cache.read(entry).cpu_seconds
    assert kept > 0
    no_compiler()
    read = compile_program(row_norm, X)
    assert read.artefacts == first.artefacts
    assert read.cpu_seconds == kept
    entry.write_bytes(b"")
    with pytest.raises(AssertionError, match="compiled again"):
        compile_program(row_norm, X)
    entry.write_bytes(whole)
    for changed in ({"target": "sm_80"}, {"options": {"xla_gpu_ftz": True}}, {"kernels": "none"}):
        with pytest.raises(AssertionError, match="compiled again"):
            compile_program(row_norm, X, **changed)
    newer = tools.versions() | {"ptxas": "99.0"}
    monkeypatch.setattr(tools, "versions", lambda: newer)
    with pytest.raises(AssertionError, match="compiled again"):
        compile_program(row_norm, X)


def test_the_tools_come_from_wheels_and_not_from_the_path(monkeypatch, tmp_path):
    log = tmp_path / "log"
    for tool in tools.PINNED:
        (tmp_path / tool).write_text(f"#!/bin/sh\necho {tool} >> {log}\nexit 1\n")
        (tmp_path / tool).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert compile_program(row_norm, X).kernels["row_norm"].registers > 0
    assert not log.exists()


def test_the_platform_stays_what_it_was():
    before = jax.devices()
    compile_program(row_norm, X, kernels="none")
    assert jax.devices() == before
    assert (jnp.ones(2) + 1).tolist() == [2, 2]


def test_compiles_after_jax_has_looked_for_plugins_in_vain():
    code = """
import jax, jax.numpy as jnp
assert jax.devices()[0].platform == "cpu"
from bench.inspect import compile_program
program = compile_program(jnp.sin, jax.ShapeDtypeStruct((4,), jnp.float32), kernels="none")
assert program.launches == 1, program.launches
assert jax.devices()[0].platform == "cpu"
"""
    dropped = ("JAX_PLATFORMS", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_compiler_that_aborts_is_an_error():
    with pytest.raises(
        CompilerFailed, match="compiling abort for sm_80 ended by SIGABRT:\nFatal Python error: Aborted"
    ):
        compile_in_subprocess(abort, X, target="sm_80")


def test_a_compilation_in_a_subprocess_is_the_same():
    found = compile_in_subprocess(row_norm, X, kernels="pallas")
    assert found.target is TARGETS["sm_90"]
    assert (found.launches, found.bytes_moved) == (1, 2 * BYTES)
    assert found.kernels["row_norm"].registers == compile_program(row_norm, X).kernels["row_norm"].registers


def test_bad_input(monkeypatch):
    with pytest.raises(ValueError, match="one of sm_80, sm_89, sm_90, sm_100, sm_120, got 'sm_75'"):
        compile_program(row_norm, X, target="sm_75")
    with pytest.raises(ValueError, match=r"pytrees of jax.ShapeDtypeStruct or arrays, got 3; .*functools.partial"):
        compile_program(row_norm, 3)
    with pytest.raises(ValueError, match="got 'x'"):
        compile_in_subprocess(row_norm, "x")
    with pytest.raises(ValueError, match="kernels must be"):
        compile_program(row_norm, X, kernels="some")
    with pytest.raises(ValueError, match="importable by name"):
        compile_in_subprocess(lambda x: x, X)
    with pytest.raises(ValueError, match="one of ptxas, nvdisasm, got 'cuobjdump'"):
        tools.find("cuobjdump")
    monkeypatch.setattr(tools, "missing", lambda: "not installed")
    with pytest.raises(ToolsMissing, match="not installed"):
        compile_program(row_norm, X)
