"""Reader of HLO text: computations, their instructions, and the sizes of their results.

    %name = f32[8,128]{1,0} opcode(%operand, ...), attribute=value, ..., backend_config={...}

Only what counting bytes needs is read. Attributes stay text (the IR of a Triton kernel is one of them).
"""

import math
import re
from dataclasses import dataclass

_ARRAY = re.compile(r"([a-z][a-z0-9]*)\[([^\]]*)\]")
_BITS = {"pred": 8, "token": 0, "opaque": 0}
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)$")


@dataclass(frozen=True)
class Array:
    """One array of a result."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size in memory; narrower than a byte rounds up over the whole array."""
        return -(-math.prod(self.shape) * _bits(self.dtype) // 8)


@dataclass(frozen=True)
class Instruction:
    """One HLO instruction; `arrays` are the leaves of its result, one unless `is_tuple`."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    is_tuple: bool
    operands: tuple[str, ...]
    argument: str  # the text between the parentheses: the number of a parameter
    attributes: str
    is_root: bool

    @property
    def bytes(self) -> int:
        """Size of the whole result."""
        return sum(array.bytes for array in self.arrays)

    @property
    def elements(self) -> int:
        """Number of elements of the whole result."""
        return sum(math.prod(array.shape) for array in self.arrays)

    def attribute(self, name: str) -> str | None:
        """Value of a plain attribute such as `calls=%computation` or `index=1`, without the %."""
        found = re.search(rf"(?:^|[\s,]){name}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else None

    def quoted(self, name: str) -> str | None:
        """Value of the first quoted attribute `name="..."`."""
        found = re.search(rf'\b{name} ?= ?"([^"]*)"', self.attributes)
        return found[1] if found else None


Computation = dict[str, Instruction]


@dataclass(frozen=True)
class Module:
    """A parsed program."""

    computations: dict[str, Computation]
    entry: str

    def called(self, instruction: Instruction, attribute: str) -> str:
        """Name of the computation that an attribute refers to.

        Raises:
            ValueError: there is none.
        """
        name = instruction.attribute(attribute)
        if name is None or name not in self.computations:
            raise ValueError(f"{instruction.opcode} {instruction.name!r} names no computation in {attribute}={name!r}")
        return name

    def branches(self, conditional: Instruction) -> list[str]:
        """Computations a conditional chooses from."""
        listed = re.search(r"branch_computations=\{([^}]*)\}", conditional.attributes)
        if listed:
            return re.findall(r"[\w.\-]+", listed[1])
        return [self.called(conditional, "true_computation"), self.called(conditional, "false_computation")]


def root(computation: Computation) -> Instruction:
    """The instruction whose result the computation returns."""
    return next(instruction for instruction in computation.values() if instruction.is_root)


def parse(text: str) -> Module:
    """Read a whole module.

    Raises:
        ValueError: not the text of an HLO module, or an instruction that cannot be read.
    """
    computations: dict[str, Computation] = {}
    entry = None
    current: Computation | None = None
    for line in text.splitlines():
        if current is None:
            if header := _HEADER.match(line):
                current = computations.setdefault(header[2], {})
                entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            current = None
        elif line.strip():
            instruction = _instruction(line)
            current[instruction.name] = instruction
    if entry is None:
        raise ValueError(f"expected the text of an HLO module with an ENTRY computation, got {text[:80]!r}")
    return Module(computations, entry)


def _instruction(line: str) -> Instruction:
    match = _INSTRUCTION.match(line)
    if match is None:
        raise ValueError(f"cannot read the HLO instruction {line[:200]!r}")
    is_root, name, rest = bool(match[1]), match[2], match[3]
    is_tuple = rest.startswith("(")
    end = _closing(rest, 0) if is_tuple else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    start = rest.index("(")
    end = _closing(rest, start)
    argument = rest[start + 1 : end - 1]
    return Instruction(
        name=name,
        opcode=rest[:start],
        arrays=tuple(_arrays(shape)),
        is_tuple=is_tuple,
        operands=tuple(re.findall(r"%([\w.\-]+)", argument)),
        argument=argument,
        attributes=rest[end:],
        is_root=is_root,
    )


def _closing(text: str, start: int) -> int:
    """Position after the parenthesis that closes the one at `start`."""
    depth = 0
    for position in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if depth == 0:
            return position + 1
    raise ValueError(f"unbalanced parentheses in {text[:200]!r}")


def _arrays(shape: str) -> list[Array]:
    # A dimension of dynamic size is written <=n.
    return [
        Array(dtype, tuple(int(size.strip("<= ")) for size in sizes.split(",") if size))
        for dtype, sizes in _ARRAY.findall(re.sub(r"/\*.*?\*/|\{[^}]*\}", "", shape))
    ]


def _bits(dtype: str) -> int:
    if dtype in _BITS:
        return _BITS[dtype]
    width = re.match(r"[a-z]+(\d+)", dtype)  # bf16, f8e4m3fn, c64
    if width is None:
        raise ValueError(f"unknown HLO element type {dtype!r}")
    return int(width[1])
