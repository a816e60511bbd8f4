"""Memory traffic and launches of an optimised program, from its HLO text.

Every instruction of the entry computation that runs on the device is a launch. It reads its operands and writes its
results once, and nothing stays in a cache between two launches:

    bytes = sum over launches of trips * (read + written)

- A fusion that only slices an operand reads the slices; one that overwrites a slice, or scattered rows, in place writes
  those alone.
- A loop counts its body and condition times its trip count. Where the compiler does not know the count, the caller
  gives it, or the loop counts once and is listed in `unknown_loops`.
- Of a conditional, the branch that moves more counts.
- Scratch space (s8 or u8 results beside others) of a library call is no traffic, nor are tuples and views.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from bench.inspect.buffers import Buffer, largest_intermediate
from bench.inspect.hlo_text import Computation, Instruction, Module, parse, root

# The target of a kernel that XLA compiles, and of one that jax (from 0.12 on) has compiled itself.
PALLAS = ("__gpu$xla.gpu.triton", "triton_kernel_call_ffi")

_NO_KERNEL = {
    "add-dependency",
    "after-all",
    "bitcast",
    "constant",
    "get-dimension-size",
    "get-tuple-element",
    "opt-barrier",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
}
_SLICES = {"dynamic-slice", "slice", "gather"}
# Operations whose element at one place depends on one element of the operand.
_VIEWS = {"bitcast", "reshape", "copy", "convert", "transpose", "negate"}


@dataclass(frozen=True)
class Launch:
    """One kernel (or copy, or library call) of the program, started `trips` times; bytes of a single start."""

    name: str
    kind: str  # "pallas", "fusion", "gemm" (a matmul, tuned only where there is a GPU), or the HLO opcode
    kernel: str  # name of the kernel it runs, as far as the HLO says
    trips: int
    read: int
    written: int
    source: str  # the operation of the user's program it came from

    @property
    def bytes(self) -> int:
        """Bytes moved by all starts together."""
        return self.trips * (self.read + self.written)


@dataclass(frozen=True)
class Traffic:
    """What a program moves, in bytes, and what it launches."""

    launches: tuple[Launch, ...]
    unknown_loops: tuple[str, ...]  # counted once
    largest: Buffer | None  # biggest buffer a launch writes that the program does not return

    @property
    def bytes(self) -> int:
        """Operands and results of every launch, loops times their trip count."""
        return sum(launch.bytes for launch in self.launches)

    @property
    def launch_count(self) -> int:
        """Launches of one run of the program."""
        return sum(launch.trips for launch in self.launches)


def traffic(text: str, trips: Mapping[str, int] | None = None) -> Traffic:
    """Count a program given as optimised HLO text; `trips` are counts of loops the compiler does not know, by name.

    Raises:
        ValueError: text that cannot be read, or a count for a loop that has none missing.
    """
    module = parse(text)
    walk = _Walk(module, dict(trips or {}))
    walk.computation(module.entry, 1)
    if unused := set(trips or {}) - walk.used:
        raise ValueError(
            f"trip counts given for {sorted(unused)}; loops without a known count: "
            f"{sorted(walk.used | set(walk.unknown)) or 'none'}."
        )
    executed = {launch.name for launch in walk.launches}
    return Traffic(tuple(walk.launches), tuple(walk.unknown), largest_intermediate(module, executed))


def runs(launched: str, kernel: str) -> bool:
    """Whether a launch that the HLO calls `launched` runs `kernel`: XLA numbers equal names as name__1, name__2."""
    return launched in (kernel, re.sub(r"__\d+$", "", kernel))


@dataclass
class _Walk:
    module: Module
    given: dict[str, int]
    launches: list[Launch] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    shared: dict[str, str] = field(default_factory=dict)  # equal fusions run the kernel of the first of them

    def computation(self, name: str, trips: int) -> None:
        computation = self.module.computations[name]
        for instruction in computation.values():
            self._instruction(instruction, computation, trips)

    def _instruction(self, instruction: Instruction, computation: Computation, trips: int) -> None:
        opcode = instruction.opcode
        if opcode in _NO_KERNEL or opcode.endswith(("-done", "-update")):
            return
        if opcode == "while":
            inner = trips * self._trip_count(instruction)
            self.computation(self.module.called(instruction, "condition"), inner)
            self.computation(self.module.called(instruction, "body"), inner)
        elif opcode == "conditional":
            self._larger_branch(instruction, trips)
        elif opcode == "call":
            self.computation(self.module.called(instruction, "to_apply"), trips)
        elif opcode == "async-start":
            self.computation(self.module.called(instruction, "calls"), trips)
        else:
            self._launch(instruction, computation, trips)

    def _larger_branch(self, conditional: Instruction, trips: int) -> None:
        walks = []
        for branch in self.module.branches(conditional):
            walks.append(replace(self, launches=[], unknown=[]))
            walks[-1].computation(branch, trips)
        larger = max(walks, key=lambda walk: sum(launch.bytes for launch in walk.launches))
        self.launches += larger.launches
        self.unknown += larger.unknown

    def _launch(self, instruction: Instruction, computation: Computation, trips: int) -> None:
        read, written = _moved(instruction, computation, self.module)
        kind, kernel = _kind(instruction)
        if same := instruction.quoted("deduplicated_name"):
            kernel = self.shared.setdefault(same, kernel)
        source = instruction.quoted("op_name") or ""
        self.launches.append(Launch(instruction.name, kind, kernel, trips, read, written, source))

    def _trip_count(self, loop: Instruction) -> int:
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
        if known:
            return int(known[1])
        if loop.name in self.given:
            self.used.add(loop.name)
            return self.given[loop.name]
        self.unknown.append(loop.name)
        return 1


def _kind(instruction: Instruction) -> tuple[str, str]:
    target = instruction.quoted("custom_call_target") or ""
    if target in PALLAS:
        return "pallas", instruction.quoted("name") or instruction.name
    gemm = re.search(r'"kind":"__\w*gemm\w*"', instruction.attributes) or re.match(r"__cublas|__cudnn", target)
    kind = "gemm" if gemm or instruction.opcode == "dot" else instruction.opcode
    return kind, target or re.sub(r"\W", "_", instruction.name)


def _moved(instruction: Instruction, computation: Computation, module: Module) -> tuple[int, int]:
    """Bytes read and written by one start."""
    sizes = [computation[operand].bytes for operand in instruction.operands]
    opcode = instruction.opcode
    if opcode == "fusion":
        return _fusion(instruction, sizes, module)
    if opcode in _SLICES:
        return instruction.bytes + sum(sizes[1:]), instruction.bytes
    if update := _update(instruction, module):
        return sum(sizes[1:]), sizes[update]
    if opcode == "copy-start":
        return sizes[0], sizes[0]
    if opcode == "custom-call" and instruction.is_tuple:
        arrays = [array for array in instruction.arrays if array.dtype not in ("s8", "u8")]
        return sum(sizes), sum(array.bytes for array in arrays or instruction.arrays)
    return sum(sizes), instruction.bytes


def _update(instruction: Instruction, module: Module) -> int:
    """Which operand is written over part of the first one; 0 if the instruction is no such update in place."""
    if instruction.opcode == "dynamic-update-slice":
        return 1
    if instruction.opcode != "scatter" or instruction.is_tuple:
        return 0
    combined = root(module.computations[module.called(instruction, "to_apply")])
    return 2 if (combined.opcode, combined.argument) == ("parameter", "1") else 0


def _fusion(fusion: Instruction, sizes: list[int], module: Module) -> tuple[int, int]:
    body = module.computations[module.called(fusion, "calls")]
    users: dict[str, list[Instruction]] = {}
    for user in body.values():
        for operand in set(user.operands):
            users.setdefault(operand, []).append(user)
    returned = root(body)
    leaves = [body[name] for name in returned.operands] if returned.opcode == "tuple" else [returned]
    updates = [_through_views(leaf, body) for leaf in leaves]
    in_place = {update.name: operand for update in updates if (operand := _update(update, module))}
    written = sum(
        body[update.operands[in_place[update.name]]].bytes if update.name in in_place else leaf.bytes
        for leaf, update in zip(leaves, updates, strict=True)
    )
    read = 0
    for parameter in body.values():
        if parameter.opcode == "parameter":
            size = sizes[int(parameter.argument)]
            read += min(size, _read(parameter.name, size, parameter, body, users, in_place))
    return read, written


def _through_views(instruction: Instruction, body: Computation) -> Instruction:
    while instruction.opcode in ("bitcast", "reshape"):
        instruction = body[instruction.operands[0]]
    return instruction


def _read(
    name: str,
    size: int,
    parameter: Instruction,
    body: Computation,
    users: Mapping[str, list[Instruction]],
    in_place: Mapping[str, int],
) -> int:
    """Bytes of `parameter` (of `size` bytes in all) that the users of its view `name` read."""
    total = 0
    for user in users.get(name, []):
        first = user.operands[0] == name and name not in user.operands[1:]
        if first and user.opcode in _SLICES:
            total += user.elements * size // max(1, parameter.elements)
        elif first and user.name in in_place:
            continue  # the buffer that is updated in place is not read
        elif user.opcode in _VIEWS and not user.is_root:
            total += _read(user.name, size, parameter, body, users, in_place)
        else:
            return size
    return total
