"""A model of a kernel's time from its machine code: no measurement, and named as a model wherever it is shown.

A multiprocessor starts at most four warp instructions per clock, and fewer on narrower units: an instruction whose unit
serves w threads per clock keeps it busy for 32 / w clocks, a memory instruction of b bytes per thread for 32 b / 128.
With n(i) executions of instruction i per warp (the trip counts of the loops around it multiplied),

    clocks(unit) = warps of the busiest multiprocessor * sum of n(i) * clocks per warp of i on that unit
    issue time   = max over units of clocks / clock rate
    memory time  = bytes / bandwidth

It assumes warps enough to hide every latency, and counts every instruction outside loops once, taken or not. It knows
nothing of bank conflicts, cache misses and launch costs, and does not count what tensor cores take: those instructions
are listed as uncounted. So "issue time below memory time" says that arithmetic is not what limits a kernel; it does not
say how long the kernel takes.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bench.inspect.loops import Loop
from bench.inspect.program import Kernel
from bench.inspect.sass import Instruction
from bench.inspect.targets import Target

_WARP = 32
_SCHEDULERS = 4
_INT_PER_CLOCK = 64
_SPECIAL_PER_CLOCK = 16
_MEMORY_BYTES_PER_CLOCK = 128
L2_BANDWIDTH = {"sm_90": 5.5e12}  # bytes per second: what others have measured; no data sheet has it
_FP64_PER_CLOCK = {"sm_80": 32, "sm_89": 2, "sm_90": 64, "sm_100": 64, "sm_120": 2}

# Units by base opcode (throughput table of the CUDA C++ programming guide). Opcodes not named only take an issue slot.
_UNITS = {
    "fp32": "FADD FMUL FFMA FSETP FSET FSEL FMNMX FMNMX3 FCHK FSWZADD FADD2 FMUL2 FFMA2",
    "fp64": "DADD DMUL DFMA DSETP DMNMX",
    "int": "IADD IADD3 IMAD IMUL LOP3 PLOP3 SHF LEA ISETP IABS IMNMX VIADD VIADDMNMX VIMNMX BMSK SGXT SEL PRMT "
    "F2FP I2FP",
    "special": "MUFU F2F F2I I2F FRND POPC FLO BREV",
    "memory": "LDG STG LD ST LDS STS LDL STL LDSM STSM LDGSTS SHFL ATOM ATOMG ATOMS RED",
}
_UNIT_OF = {opcode: unit for unit, opcodes in _UNITS.items() for opcode in opcodes.split()}
_TENSOR = re.compile(r"[A-Z]*(?:MMA)\d*$")
_WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}


@dataclass(frozen=True)
class Model:
    """Modelled, not measured: microseconds of one launch, and clocks of the busiest multiprocessor by unit."""

    issue_us: float
    memory_us: float
    unit: str  # the unit that issue_us is the time of
    clocks: Mapping[str, float]
    uncounted: Mapping[str, int]  # tensor core instructions, whose time is in none of the figures

    @property
    def memory_bound(self) -> bool:
        """Whether the modelled issue time is below the memory time."""
        return self.issue_us < self.memory_us


def memory_us(moved_bytes: float, target: Target) -> float:
    """Microseconds to move that many bytes at the full bandwidth of the card."""
    return moved_bytes / target.bandwidth * 1e6


def tensor_us(multiply_adds: float, target: Target) -> float:
    """Microseconds that the tensor cores take for that many products of bfloat16 numbers at their full rate."""
    return multiply_adds / (target.tensor_per_clock * target.multiprocessors * target.clock) * 1e6


def cache_us(bytes_: float, target: Target) -> float:
    """Microseconds that the L2 cache takes to hand out that many bytes; only for targets of `L2_BANDWIDTH`."""
    return bytes_ / L2_BANDWIDTH[target.name] * 1e6


def model(kernel: Kernel, *, moved_bytes: float, trips: Mapping[int, float] | None = None) -> Model:
    """Model one launch of `kernel`.

    Args:
        kernel: a kernel of a `Program`.
        moved_bytes: bytes read and written by one launch, e.g. `sum` over `Program.launches_of`.
        trips: trip count of each loop of `kernel.loops` by the address of its header. Loops that only poll a barrier
            count once if not given.

    Raises:
        ValueError: a loop without a trip count, a count for no loop, or a matmul of XLA's, which no GPU has tuned.
    """
    if kernel.is_gemm:
        raise ValueError(f"{kernel.name} is a matmul of XLA's that no GPU has tuned: its time here says nothing.")
    counts = _trip_counts(kernel, trips or {})
    clocks: defaultdict[str, float] = defaultdict(float)
    uncounted: Counter[str] = Counter()
    for instruction in kernel.instructions:
        runs = math.prod(count for loop, count in counts if instruction.address in loop)
        clocks["issue"] += runs / _SCHEDULERS
        if _TENSOR.match(instruction.base):
            uncounted[instruction.base] += 1
        elif unit := _UNIT_OF.get(instruction.base):
            clocks[unit] += runs * _clocks(unit, instruction, kernel.target)
    warps = -(-kernel.threads // _WARP) * -(-math.prod(kernel.grid) // kernel.target.multiprocessors)
    total = {unit: warps * per_warp for unit, per_warp in clocks.items()}
    slowest = max(total, key=lambda unit: total[unit])
    return Model(
        issue_us=total[slowest] / kernel.target.clock * 1e6,
        memory_us=memory_us(moved_bytes, kernel.target),
        unit=slowest,
        clocks=total,
        uncounted=dict(uncounted),
    )


def _trip_counts(kernel: Kernel, trips: Mapping[int, float]) -> list[tuple[frozenset[int], float]]:
    loops = {loop.header: loop for loop in kernel.loops}
    if unknown := set(trips) - set(loops):
        raise ValueError(f"{kernel.name} has no loop at {_list(unknown)}; its loops start at {_list(loops)}.")
    open_ones = [loop for loop in kernel.loops if loop.header not in trips and not loop.waits]
    if open_ones:
        raise ValueError(f"{kernel.name}: trips must give the trip count of {'; '.join(map(_describe, open_ones))}.")
    return [(loop.addresses, trips.get(loop.header, 1)) for loop in kernel.loops]


def _clocks(unit: str, instruction: Instruction, target: Target) -> float:
    """Clocks one warp keeps the unit of a multiprocessor busy for."""
    if unit == "memory":
        return max(1.0, _WARP * _width(instruction) / _MEMORY_BYTES_PER_CLOCK)
    per_clock = {
        "fp32": target.fp32_per_clock,
        "fp64": _FP64_PER_CLOCK[target.name],
        "int": _INT_PER_CLOCK,
        "special": _SPECIAL_PER_CLOCK,
    }[unit]
    return _WARP / per_clock


def _width(instruction: Instruction) -> int:
    """Bytes per thread of a memory instruction."""
    if instruction.base == "SHFL":
        return 4
    widths = [_WIDTHS[part] for part in instruction.opcode.split(".")[1:] if part in _WIDTHS]
    return widths[-1] if widths else 4


def _describe(loop: Loop) -> str:
    return f"the loop at {loop.header:#x} ({len(loop.instructions)} instructions, depth {loop.depth})"


def _list(addresses: Iterable[int]) -> str:
    return ", ".join(f"{address:#x}" for address in sorted(addresses)) or "none"
