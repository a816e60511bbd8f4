"""The largest buffer that a program writes and does not return.

A score matrix or a state per step shows here even where launches and bytes hide it. Returned buffers are found from the
root of the entry computation backwards, through tuples, views, loops (whose carried values are updated in place) and
branches; what a launch writes elsewhere is an intermediate.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

from bench.inspect.hlo_text import Instruction, Module, root

_ALL = -1  # every leaf of a result


@dataclass(frozen=True)
class Buffer:
    """One array written by the instruction `name`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int


def largest_intermediate(module: Module, executed: Collection[str]) -> Buffer | None:
    """The biggest array written by an instruction in `executed` that is not returned; None if there is none."""
    returned = _Returned(module)
    returned.mark(module.entry, root(module.computations[module.entry]), _ALL)
    found: Buffer | None = None
    for computation in module.computations.values():
        for instruction in computation.values():
            if instruction.name not in executed:
                continue
            for leaf, array in enumerate(instruction.arrays):
                if {(instruction.name, leaf), (instruction.name, _ALL)} & returned.marked:
                    continue
                if found is None or array.bytes > found.bytes:
                    found = Buffer(instruction.name, array.dtype, array.shape, array.bytes)
    return found


@dataclass
class _Returned:
    module: Module
    marked: set[tuple[str, int]] = field(default_factory=set)

    def mark(self, computation: str, instruction: Instruction, leaf: int) -> None:
        """Mark a leaf of a result as returned, and the results it is a view of."""
        if (instruction.name, leaf) in self.marked:
            return
        self.marked.add((instruction.name, leaf))
        within = self.module.computations[computation]
        operands = [within[name] for name in instruction.operands if name in within]
        match instruction.opcode:
            case "tuple":
                for position, operand in enumerate(operands):
                    if leaf in (position, _ALL):
                        self.mark(computation, operand, _ALL)
            case "get-tuple-element":
                self.mark(computation, operands[0], int(instruction.attribute("index") or 0))
            case "bitcast" | "opt-barrier":
                self.mark(computation, operands[0], leaf)
            case "dynamic-update-slice" | "scatter":
                self.mark(computation, operands[0], _ALL)
            case "while":
                self.mark(computation, operands[0], leaf)
                self._mark_root(self.module.called(instruction, "body"), leaf)
            case "conditional":
                for branch in self.module.branches(instruction):
                    self._mark_root(branch, leaf)
            case "call":
                self._mark_root(self.module.called(instruction, "to_apply"), leaf)

    def _mark_root(self, computation: str, leaf: int) -> None:
        self.mark(computation, root(self.module.computations[computation]), leaf)
