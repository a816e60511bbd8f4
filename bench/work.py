"""What the kernels of a program do: instructions of a tile, bytes loaded and stored, modelled time.

Loads and stores come from the Triton IR interpreter: programs that between them do all there is to do are run at full
length (`alike` of the op) and multiplied by how often they occur. Where values decide what is loaded, they are 0: no
document begins inside a row, and none ends.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from bench import ops
from bench.inspect import Kernel, Launch, Loop, memory_us, model, tensor_us
from bench.inspect.lowering import TritonCall, lower, triton_calls
from bench.inspect.sass import histogram
from bench.inspect.triton_ir import check_addresses
from bench.ops import Spec
from bench.ops.walk import Walk


@dataclass(frozen=True)
class Issued:
    """Bytes of the loads and stores of one launch.

    Attributes:
        total: all of them.
        cached: of it, loads of arrays that are small and read by many programs, again and again: they are in a cache.
        multiply_adds: of its matrix products.
    """

    total: int
    cached: int
    multiply_adds: int


@dataclass(frozen=True)
class Work:
    """What one launch of a kernel does. Times are those of a model (`bench.inspect.cost`).

    Attributes:
        instructions: SASS instructions of the loop over tiles (of the whole kernel if it has none): one tile.
        tiles: trips of that loop in all.
        per_element: instructions x threads / elements of a tile.
        fused, products, sums: FFMA, FMUL and FADD among the instructions.
        unit: what the modelled issue time is the time of.
    """

    instructions: int
    tiles: int
    per_element: float
    fused: int
    products: int
    sums: int
    bytes_moved: int
    bytes_issued: int
    bytes_cached: int
    issue_us: float
    memory_us: float
    unit: str


@dataclass(frozen=True)
class Products:
    """Matrix products of one launch. Times are a model's: tensor cores at their full rate, memory at full bandwidth."""

    multiply_adds: int
    bytes_moved: int
    bytes_issued: int
    tensor_us: float
    memory_us: float


Key = tuple[str, int, int]  # name, bytes of the operands, bytes of the results


def issued(spec: Spec, mode: str, target: str) -> dict[Key, Issued] | None:
    """Loads, stores and products of each kernel of a program, which `key` finds; None where values decide on them.

    Raises:
        ValueError: kernels with the same key differ.
    """
    op = ops.of(spec)
    function, arrays = op.program(spec, mode, "triton")
    found: dict[Key, Issued] = {}
    for call in triton_calls(lower(function, arrays, target=target)):
        alike = op.alike(call)
        if alike is None:
            return None
        name = (call.name, _bytes(call.operands), _bytes(call.results))
        counted = _count(call, alike, op.cached(spec))
        if found.setdefault(name, counted) != counted:
            raise ValueError(f"two kernels {call.name} with operands and results of the same size load {found[name]}")
    return found


def key(launch: Launch) -> Key:
    """What tells a launch from others of its name."""
    return launch.kernel, launch.read, launch.written


def products(launch: Launch, kernel: Kernel, counted: Issued) -> Products | None:
    """Of one launch of `kernel` on bfloat16 numbers; None if it has no matrix products."""
    if not counted.multiply_adds:
        return None
    return Products(
        multiply_adds=counted.multiply_adds,
        bytes_moved=launch.bytes,
        bytes_issued=counted.total,
        tensor_us=tensor_us(counted.multiply_adds, kernel.target),
        memory_us=memory_us(launch.bytes, kernel.target),
    )


def work(walk: Walk, launch: Launch, kernel: Kernel, counted: Issued) -> Work | None:
    """Of one launch of `kernel`; None where its programs walk differently far."""
    if walk.trips is None:
        return None
    loops = nest(kernel, len(walk.trips))
    trips = {loop.header: walk.others for loop in kernel.loops if not loop.waits}
    trips |= dict(zip((loop.header for loop in loops), walk.trips, strict=True)) if loops else {}
    tile = _tile(kernel, loops, walk.others)
    kinds: Counter[str] = histogram(tile)
    modelled = model(kernel, moved_bytes=launch.bytes, trips=trips)
    tiles = math.prod(walk.trips)
    return Work(
        instructions=len(tile),
        tiles=tiles if loops else 1,
        per_element=len(tile) * kernel.threads / (walk.elements * (1 if loops else max(1, tiles))),
        fused=kinds["FFMA"] + kinds["FFMA2"],
        products=kinds["FMUL"] + kinds["FMUL2"],
        sums=kinds["FADD"] + kinds["FADD2"],
        bytes_moved=launch.bytes,
        bytes_issued=counted.total,
        bytes_cached=counted.cached,
        issue_us=modelled.issue_us,
        memory_us=modelled.memory_us,
        unit=modelled.unit,
    )


def nest(kernel: Kernel, depth: int) -> tuple[Loop, ...]:
    """The longest outermost loop, the longest in it, and so on: the last one walks over tiles. Empty without loops."""
    found: list[Loop] = []
    for level in range(1, depth + 1):
        around = found[-1].addresses if found else None
        inside = [
            loop
            for loop in kernel.loops
            if loop.depth == level and not loop.waits and (around is None or loop.addresses <= around)
        ]
        found += [max(inside, key=lambda loop: len(loop.instructions))] if inside else []
    return tuple(found)


def _tile(kernel: Kernel, loops: Sequence[Loop], others: int):
    """Instructions of a trip over the loop over tiles, without loops inside it that are not entered."""
    if not loops:
        return kernel.instructions
    skipped = [loop.addresses for loop in kernel.loops if loop.addresses < loops[-1].addresses and not others]
    return [i for i in loops[-1].instructions if not any(i.address in addresses for addresses in skipped)]


def _count(call: TritonCall, alike: Sequence[tuple[Sequence[int], int]], cached: set[tuple[int, ...]]) -> Issued:
    total = again = products = 0
    for cells, times in alike:
        report = check_addresses(call, cells=cells)
        operands = zip(call.operands, report.buffers, strict=False)  # results come after the operands
        loaded = sum(buffer.bytes_loaded for operand, buffer in operands if operand.shape in cached)
        total += (report.bytes_loaded + report.bytes_stored) * times
        again += loaded * times
        products += report.multiply_adds * times
    return Issued(total, again, products)


def _bytes(arrays) -> int:
    return sum(math.prod(array.shape) * array.dtype.itemsize for array in arrays)
