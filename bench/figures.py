"""Static figures of a timestep_norm program compiled for a GPU that is not there.

Bytes are counted twice:

    moved     operands + results of every launch of the compiled program
    issued    the same, with the loads + stores that the lowered kernels really issue in the place of their operands +
              results: a tile that is read twice counts twice

The second comes from the Triton IR interpreter. One group of one sequence is run through all its chunks, at full
length, and multiplied by batch x groups: exact, because every group of every sequence does the same loads and stores.
"""

import re
from dataclasses import dataclass

from bench import ops
from bench.inspect import Kernel, Loop, Program, compile_program, model
from bench.inspect.lowering import lower, triton_calls
from bench.inspect.triton_ir import check_addresses
from bench.ops import Spec
from pallas_kernels._tiles import Tiles


@dataclass(frozen=True)
class Work:
    """What one launch of a kernel does. Times are those of a model (`bench.inspect.cost`).

    Attributes:
        instructions: SASS instructions of the main loop (of the whole kernel if it has none): one tile.
        tiles: trips of that loop, ceil(chunk length / tokens of a tile).
        per_element: instructions x threads / elements of a tile.
        unit: what the modelled issue time is the time of.
    """

    instructions: int
    tiles: int
    per_element: float
    bytes_moved: int
    bytes_issued: int
    issue_us: float
    memory_us: float
    unit: str


@dataclass(frozen=True)
class KernelFigures:
    """One Pallas kernel: registers per thread, spills and stack in bytes per thread, shared memory per block."""

    name: str
    tokens: int  # of a tile
    chunks: int
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


@dataclass(frozen=True)
class ProgramFigures:
    """One program; `largest_intermediate` is the biggest buffer it writes and does not return."""

    bytes_moved: int
    bytes_issued: int | None
    launches: int
    temporary_bytes: int
    largest_intermediate: int
    kernels: tuple[KernelFigures, ...]


def figures(spec: Spec, mode: str, implementation: str, target: str, *, work: bool = False) -> ProgramFigures:
    """Compile a program; `work` adds what its kernels do (the loads + stores are counted by running them)."""
    function, arrays = ops.of(spec).program(spec, mode, implementation)
    pallas = implementation == "triton"
    compiled = compile_program(function, arrays, target=target, kernels="pallas" if pallas else "none")
    counted = issued(spec, mode, target) if work and pallas else None
    largest = compiled.largest_intermediate
    return ProgramFigures(
        bytes_moved=compiled.bytes_moved,
        bytes_issued=None if counted is None else _bytes_issued(compiled, counted),
        launches=compiled.launches,
        temporary_bytes=compiled.temporary_bytes,
        largest_intermediate=0 if largest is None else largest.bytes,
        kernels=tuple(_kernel(spec, compiled, kernel, counted) for kernel in compiled.kernels.values()),
    )


def issued(spec: Spec, mode: str, target: str) -> dict[str, int]:
    """Bytes of the loads and stores of each kernel of a program, by name."""
    function, arrays = ops.of(spec).program(spec, mode, "triton")
    found = {}
    for call in triton_calls(lower(function, arrays, target=target)):
        cells, times = ops.of(spec).alike(call.grid)
        report = check_addresses(call, cells=cells)
        found[call.name] = (report.bytes_loaded + report.bytes_stored) * times
    return found


def main_loop(kernel: Kernel) -> Loop | None:
    """The loop over tiles: the longest of the outermost ones."""
    outermost = [loop for loop in kernel.loops if loop.depth == 1 and not loop.waits]
    return max(outermost, key=lambda loop: len(loop.instructions), default=None)


def _bytes_issued(compiled: Program, counted: dict[str, int]) -> int:
    launched = compiled.traffic.launches
    return sum(counted[launch.kernel] if launch.kind == "pallas" else launch.bytes for launch in launched)


def _kernel(spec: Spec, compiled: Program, kernel: Kernel, counted: dict[str, int] | None) -> KernelFigures:
    chosen = _tiles(spec, kernel)
    return KernelFigures(
        name=kernel.name,
        tokens=chosen.block_length,
        chunks=kernel.grid[2],
        threads=kernel.threads,
        registers=kernel.registers,
        spill_bytes=kernel.spill_bytes,
        stack_bytes=kernel.stack_bytes,
        shared_bytes=kernel.shared_bytes,
        blocks=kernel.occupancy.blocks,
        limiter=kernel.occupancy.limiter,
        fused_multiply_adds=kernel.histogram["FFMA"] + kernel.histogram["FFMA2"],
        tensor_instructions=sum(count for opcode, count in kernel.histogram.items() if "MMA" in opcode),
        work=None if counted is None else _work(spec, chosen, compiled, kernel, counted[kernel.name]),
    )


def _work(spec: Spec, chosen: Tiles, compiled: Program, kernel: Kernel, bytes_issued: int) -> Work:
    tiles = -(-ops.of(spec).chunk(spec, chosen) // chosen.block_length)
    loop = main_loop(kernel)
    # Loops inside that over the tiles walk the documents of a tile: one document per tile.
    trips = {other.header: tiles if other == loop else 1 for other in kernel.loops}
    moved = sum(launch.bytes for launch in compiled.launches_of(kernel.name))
    modelled = model(kernel, moved_bytes=moved, trips=trips)
    instructions = len(kernel.instructions if loop is None else loop.instructions)
    return Work(
        instructions=instructions,
        tiles=tiles,
        per_element=instructions * kernel.threads / ops.of(spec).elements(spec, chosen),
        bytes_moved=moved,
        bytes_issued=bytes_issued,
        issue_us=modelled.issue_us,
        memory_us=modelled.memory_us,
        unit=modelled.unit,
    )


def _tiles(spec: Spec, kernel: Kernel) -> Tiles:
    plan = ops.of(spec).launches(spec, kernel.target.name)
    name = re.sub("_totals$", "", kernel.name)
    return next(launch.tiles for launch in plan if launch.kernel == name)
