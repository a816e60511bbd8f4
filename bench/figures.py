"""Static figures of a program of an op, compiled for a GPU that is not there.

Bytes are counted twice:

    moved     operands + results of every launch of the compiled program
    issued    the same, with the loads + stores that the lowered kernels really issue in the place of their operands +
              results (`bench.work`): a tile that is read twice counts twice
"""

from dataclasses import dataclass

from bench import ops
from bench.inspect import Kernel, Launch, Program, compile_program
from bench.ops import Spec
from bench.work import Issued, Key, Products, Work, issued, key, products, work


@dataclass(frozen=True)
class KernelFigures:
    """One launch of a Pallas kernel: registers per thread, spills and stack in bytes per thread, shared per block."""

    name: str
    tile: dict[str, int]  # what a program works on, by name
    threads: int
    registers: int
    spill_bytes: int
    stack_bytes: int
    shared_bytes: int
    blocks: int  # resident on one multiprocessor
    limiter: str
    fused_multiply_adds: int  # FFMA in the whole kernel
    tensor_instructions: int  # MMA of any kind
    work: Work | None
    products: Products | None


@dataclass(frozen=True)
class ProgramFigures:
    """One program.

    Attributes:
        bytes_cached: of the bytes issued, loads of small arrays that many programs read.
        multiply_adds: of the matrix products of its kernels.
        largest_intermediate: the biggest buffer it writes and does not return.
        cpu_seconds: of XLA, Triton and ptxas, when it was compiled: figures may come from the cache.
        kernels: one for each launch, in order.
    """

    bytes_moved: int
    bytes_issued: int | None
    bytes_cached: int | None
    multiply_adds: int | None
    launches: int
    temporary_bytes: int
    largest_intermediate: int
    cpu_seconds: float
    kernels: tuple[KernelFigures, ...]


def figures(spec: Spec, mode: str, implementation: str, target: str, *, detailed: bool = False) -> ProgramFigures:
    """Compile a program; `detailed` adds what its kernels do (the loads + stores are counted by running them)."""
    function, arrays = ops.of(spec).program(spec, mode, implementation)
    pallas = implementation == "triton"
    compiled = compile_program(function, arrays, target=target, kernels="pallas" if pallas else "none")
    counted = issued(spec, mode, target) if detailed and pallas else None
    largest = compiled.largest_intermediate
    total = None if counted is None else _issued(compiled, counted)
    return ProgramFigures(
        bytes_moved=compiled.bytes_moved,
        bytes_issued=None if total is None else total.total,
        bytes_cached=None if total is None else total.cached,
        multiply_adds=None if total is None else total.multiply_adds,
        launches=compiled.launches,
        temporary_bytes=compiled.temporary_bytes,
        largest_intermediate=0 if largest is None else largest.bytes,
        cpu_seconds=compiled.cpu_seconds,
        kernels=tuple(_kernel(spec, mode, *pair, counted) for pair in compiled.pallas_launches),
    )


def _issued(compiled: Program, counted: dict[Key, Issued]) -> Issued:
    launches = compiled.traffic.launches
    ours = [counted[key(launch)] for launch in launches if launch.kind == "pallas"]
    others = sum(launch.bytes for launch in launches if launch.kind != "pallas")
    return Issued(
        others + sum(one.total for one in ours),
        sum(one.cached for one in ours),
        sum(one.multiply_adds for one in ours),
    )


def _kernel(spec: Spec, mode: str, launch: Launch, kernel: Kernel, counted: dict[Key, Issued] | None) -> KernelFigures:
    walk = ops.of(spec).walk(spec, mode, kernel)
    return KernelFigures(
        name=kernel.name,
        tile=walk.tile,
        threads=kernel.threads,
        registers=kernel.registers,
        spill_bytes=kernel.spill_bytes,
        stack_bytes=kernel.stack_bytes,
        shared_bytes=kernel.shared_bytes,
        blocks=kernel.occupancy.blocks,
        limiter=kernel.occupancy.limiter,
        fused_multiply_adds=kernel.histogram["FFMA"] + kernel.histogram["FFMA2"],
        tensor_instructions=sum(count for opcode, count in kernel.histogram.items() if "MMA" in opcode),
        work=None if counted is None else work(walk, launch, kernel, counted[key(launch)]),
        products=None if counted is None else products(launch, kernel, counted[key(launch)]),
    )
