"""A compiled program and its kernels: everything that can be known of them without a GPU.

Both are views of `Artefacts`; nothing here runs a compiler.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from bench.inspect.artefacts import Artefacts, Geometry, geometries, launched
from bench.inspect.buffers import Buffer
from bench.inspect.hlo import Launch, Traffic, runs, traffic
from bench.inspect.loops import Loop, find_loops
from bench.inspect.occupancy import Occupancy, occupancy
from bench.inspect.sass import Instruction, Resources, histogram, parse_disassembly, parse_resources
from bench.inspect.targets import Target


@dataclass(frozen=True)
class Kernel:
    """One kernel of a program: registers per thread, stack and spills in bytes per thread."""

    name: str
    target: Target
    grid: tuple[int, int, int]
    threads: int  # per block
    shared_bytes: int  # per block, static and dynamic
    registers: int
    spill_bytes: int  # stored and loaded
    stack_bytes: int
    ptx: str
    instructions: tuple[Instruction, ...]
    is_pallas: bool
    is_gemm: bool  # a matmul of XLA's, not tuned where there is no GPU

    @property
    def sass(self) -> str:
        """The machine code, one instruction a line."""
        return "\n".join(map(str, self.instructions))

    @cached_property
    def histogram(self) -> Counter[str]:
        """How often each base opcode occurs (FFMA, LDG, ...)."""
        return histogram(self.instructions)

    @cached_property
    def loops(self) -> tuple[Loop, ...]:
        """Loops of the machine code, each before those inside it."""
        return find_loops(self.instructions)

    @cached_property
    def occupancy(self) -> Occupancy:
        """What is resident on one multiprocessor."""
        return occupancy(self.target, threads=self.threads, registers=self.registers, shared_bytes=self.shared_bytes)


@dataclass(frozen=True)
class Program:
    """A program compiled for `target`. Sizes in bytes."""

    target: Target
    artefacts: Artefacts

    @property
    def hlo(self) -> str:
        """The optimised HLO text."""
        return self.artefacts.hlo

    @property
    def argument_bytes(self) -> int:
        """All arguments."""
        return self.artefacts.argument_bytes

    @property
    def output_bytes(self) -> int:
        """All results, those that reuse a donated argument included."""
        return self.artefacts.output_bytes

    @property
    def temporary_bytes(self) -> int:
        """The memory that is neither argument nor result."""
        return self.artefacts.temporary_bytes

    @property
    def cpu_seconds(self) -> float:
        """CPU time the compilers took when the program was compiled, which may have been in an earlier process."""
        return self.artefacts.cpu_seconds

    @cached_property
    def kernels(self) -> Mapping[str, Kernel]:
        """Inspected kernels by name, in the order of their first launch."""
        found = {}
        for name, geometry in geometries(self.artefacts.thunks).items():
            if name in self.artefacts.ptx:
                found[name] = self._kernel(name, geometry)
        return found

    @cached_property
    def traffic(self) -> Traffic:
        """Launches and memory traffic; loops of unknown trip count counted once (`hlo.traffic` takes their counts)."""
        return traffic(self.artefacts.hlo)

    @property
    def bytes_moved(self) -> int:
        """Operands and results of every launch, loops times their trip count."""
        return self.traffic.bytes

    @property
    def launches(self) -> int:
        """Kernels, copies and library calls started by one run."""
        return self.traffic.launch_count

    @property
    def static_launches(self) -> int:
        """The same, what a loop launches counted once."""
        return len(self.traffic.launches)

    @property
    def largest_intermediate(self) -> Buffer | None:
        """The biggest buffer written and not returned."""
        return self.traffic.largest

    @property
    def pallas_kernels(self) -> tuple[str, ...]:
        """Names given to `pallas_call`, each once, in the order of their first launch."""
        names = (launch.kernel for launch in self.traffic.launches if launch.kind == "pallas")
        return tuple(dict.fromkeys(names))

    @property
    def pallas_launches(self) -> tuple[tuple[Launch, Kernel], ...]:
        """Every launch of a Pallas kernel with the machine code it runs, in order.

        XLA numbers kernels of one name: which launch runs which of them shows only in the order of both lists.

        Raises:
            RuntimeError: the lists differ.
        """
        ours = [launch for launch in self.traffic.launches if launch.kind == "pallas"]
        names = [name for name in launched(self.artefacts.thunks) if any(runs(one.kernel, name) for one in ours)]
        if len(names) != len(ours) or not all(runs(one.kernel, name) for one, name in zip(ours, names, strict=True)):
            raise RuntimeError(
                f"the program launches {[one.kernel for one in ours]}, XLA's list of launches has {names}"
            )
        return tuple((launch, self.kernels[name]) for launch, name in zip(ours, names, strict=True))

    def launches_of(self, kernel: str) -> tuple[Launch, ...]:
        """Launches of a kernel. Different Pallas kernels of one name share theirs: give them different names.

        Raises:
            ValueError: the program starts no such kernel.
        """
        found = tuple(launch for launch in self.traffic.launches if runs(launch.kernel, kernel))
        if not found:
            names = sorted({launch.kernel for launch in self.traffic.launches})
            raise ValueError(f"no launch of {kernel!r}; the program launches {', '.join(names) or 'nothing'}.")
        return found

    def _kernel(self, name: str, geometry: Geometry) -> Kernel:
        resources: Resources = parse_resources(self.artefacts.assembler_reports[name])[name]
        kinds = {launch.kind for launch in self.traffic.launches if runs(launch.kernel, name)}
        return Kernel(
            name=name,
            target=self.target,
            grid=geometry.grid,
            threads=math.prod(geometry.threads),
            shared_bytes=geometry.shared_bytes + resources.shared_bytes,
            registers=resources.registers,
            spill_bytes=resources.spill_store_bytes + resources.spill_load_bytes,
            stack_bytes=resources.stack_bytes,
            ptx=self.artefacts.ptx[name],
            instructions=parse_disassembly(self.artefacts.disassemblies[name])[name],
            is_pallas="pallas" in kinds,
            is_gemm="gemm" in kinds,
        )
