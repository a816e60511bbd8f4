"""What the compilers wrote, as plain text and numbers: all that is kept of a compilation.

Everything else (`Program`, `Kernel`) is read from these, so that one from a file and a fresh one cannot differ.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

_THUNK = re.compile(
    r"(?P<name>\S+) grid: \[(?P<grid>[\d, ]+)\] threads: \[(?P<threads>[\d, ]+)\]"
    r"(?:.*?shared_memory: (?P<shared>\d+))?"
)


@dataclass(frozen=True)
class Geometry:
    """How a kernel is launched; `shared_bytes` is the dynamic shared memory of a block."""

    grid: tuple[int, int, int]
    threads: tuple[int, int, int]
    shared_bytes: int


@dataclass(frozen=True)
class Artefacts:
    """Text by kernel name where a mapping. Sizes in bytes."""

    hlo: str  # optimised
    thunks: str  # XLA's list of what it launches
    ptx: dict[str, str]
    assembler_reports: dict[str, str]
    disassemblies: dict[str, str]
    argument_bytes: int
    output_bytes: int
    alias_bytes: int
    temporary_bytes: int
    # CPU time of XLA with Triton and ptxas; not about the program, and no two compilations take the same.
    cpu_seconds: float = field(default=0.0, compare=False)

    def to_plain(self) -> dict[str, Any]:
        """Strings, integers and dictionaries of strings only."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: object) -> "Artefacts":
        """The opposite of `to_plain`.

        Raises:
            ValueError: a missing or unknown entry, or one of another type.
        """
        names = {entry.name: entry.type for entry in fields(cls)}
        if not isinstance(plain, Mapping) or set(plain) != set(names):
            raise ValueError(f"expected the entries {', '.join(names)}")
        for name, wanted in names.items():
            if not _is(plain[name], str(getattr(wanted, "__name__", wanted))):
                raise ValueError(f"entry {name} is not of type {wanted}")
        return cls(**plain)


def _is(value: object, wanted: str) -> bool:
    if wanted == "dict":
        return isinstance(value, dict) and all(isinstance(x, str) for pair in value.items() for x in pair)
    return type(value).__name__ == wanted


def geometries(thunks: str) -> dict[str, Geometry]:
    """Launch geometry by kernel name from XLA's list of thunks."""
    found = {}
    for match in _THUNK.finditer(thunks):
        found[match["name"]] = Geometry(_three(match["grid"]), _three(match["threads"]), int(match["shared"] or 0))
    return found


def launched(thunks: str) -> tuple[str, ...]:
    """Names of the kernels in the order in which XLA lists their launches; one launched twice is there twice."""
    return tuple(match["name"] for match in _THUNK.finditer(thunks))


def _three(text: str) -> tuple[int, int, int]:
    x, y, z = (int(part) for part in text.split(","))
    return x, y, z
