"""Natural loops of a kernel's machine code.

Block a dominates block b if every path from the entry to b passes a. An edge b -> a with a dominating b closes a loop:
its body is a and every block that reaches b without passing a. Loops with the same header are one. Code outside the
main path that only jumps back into it (waits, divergent cases) is no loop by this definition.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from bench.inspect.sass import Instruction, histogram

_JUMPS = {"BRA", "BRX", "JMP", "JMX"}
_ENDS = {"EXIT", "RET", "KILL", "BPT"}
_WAIT_AT_MOST = 8  # instructions of a loop that only polls a barrier


@dataclass(frozen=True)
class Loop:
    """A loop by the address of its header. `depth` is 1 for outermost loops; nested ones are part of `instructions`."""

    header: int
    depth: int
    instructions: tuple[Instruction, ...]

    @property
    def histogram(self) -> Counter[str]:
        """How often each base opcode occurs in the body, nested loops included."""
        return histogram(self.instructions)

    @property
    def waits(self) -> bool:
        """Whether the loop only polls a barrier until it opens."""
        return len(self.instructions) <= _WAIT_AT_MOST and any(i.base == "SYNCS" for i in self.instructions)

    @property
    def addresses(self) -> frozenset[int]:
        """Addresses of the body."""
        return frozenset(instruction.address for instruction in self.instructions)


def find_loops(instructions: Sequence[Instruction]) -> tuple[Loop, ...]:
    """Loops in the order of their headers, so that a loop comes before those inside it."""
    if not instructions:
        return ()
    blocks = _blocks(instructions)
    successors = _successors(blocks)
    before = _predecessors(successors, min(blocks))
    dominators = _dominators(before)
    bodies: dict[int, set[int]] = {}
    for block in before:
        for header in successors[block] & dominators[block]:
            bodies.setdefault(header, {header}).update(_body(before, header, block))
    return tuple(
        Loop(
            header,
            sum(header in other for other in bodies.values()),
            tuple(i for start in sorted(bodies[header]) for i in blocks[start]),
        )
        for header in sorted(bodies)
    )


def branch_target(instruction: Instruction) -> int | None:
    """Address an instruction may jump to (or call); None if it does not jump or the address is in a register."""
    if instruction.base not in _JUMPS | {"CALL"} and instruction.opcode != "WARPSYNC.COLLECTIVE":
        return None
    last = instruction.operands.split(",")[-1].split()[-1:] or [""]
    return int(last[0], 16) if last[0].startswith("0x") else None


def _falls_through(instruction: Instruction) -> bool:
    if instruction.base in _ENDS:
        return bool(instruction.predicate)
    if instruction.base not in _JUMPS:
        return True
    # BRA.DIV and its like, or a predicate as an operand, make the jump depend on the threads.
    plain = instruction.opcode in _JUMPS and "," not in instruction.operands and " " not in instruction.operands
    return bool(instruction.predicate) or not plain


def _blocks(instructions: Sequence[Instruction]) -> dict[int, list[Instruction]]:
    known = {instruction.address for instruction in instructions}
    starts = {instructions[0].address}
    for before, after in pairwise(instructions):
        if before.base in _JUMPS | _ENDS or branch_target(before) is not None:
            starts.add(after.address)
    starts |= {goal for i in instructions if (goal := branch_target(i)) in known and goal is not None}
    blocks: dict[int, list[Instruction]] = {}
    current: list[Instruction] = []
    for instruction in instructions:
        if instruction.address in starts:
            current = blocks.setdefault(instruction.address, [])
        current.append(instruction)
    return blocks


def _successors(blocks: Mapping[int, list[Instruction]]) -> dict[int, set[int]]:
    following = dict(zip(blocks, list(blocks)[1:], strict=False))
    found = {}
    for start, block in blocks.items():
        last = block[-1]
        goals = {branch_target(last)} | ({following.get(start)} if _falls_through(last) else set())
        found[start] = {goal for goal in goals if goal is not None and goal in blocks}
    return found


def _predecessors(successors: Mapping[int, set[int]], entry: int) -> dict[int, set[int]]:
    """Predecessors of every block that can be reached from the entry."""
    found: dict[int, set[int]] = {entry: set()}
    waiting = [entry]
    while waiting:
        block = waiting.pop()
        for after in successors[block]:
            if after not in found:
                found[after] = set()
                waiting.append(after)
            found[after].add(block)
    return found


def _dominators(before: Mapping[int, set[int]]) -> dict[int, set[int]]:
    entry = min(before)
    found = {block: set(before) for block in before} | {entry: {entry}}
    changed = True
    while changed:
        changed = False
        for block in sorted(set(before) - {entry}):
            new = {block} | set.intersection(*(found[other] for other in before[block]))
            changed |= new != found[block]
            found[block] = new
    return found


def _body(before: Mapping[int, set[int]], header: int, closing: int) -> set[int]:
    found = {header}
    waiting = [closing]
    while waiting:
        block = waiting.pop()
        if block not in found:
            found.add(block)
            waiting.extend(before[block])
    return found
