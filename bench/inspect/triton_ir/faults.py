"""What can go wrong in a kernel, as values: each fault names its kind, kernel, grid cell, buffer and source line."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class FaultKind(StrEnum):
    """The errors the interpreter traps."""

    OUT_OF_BOUNDS_LOAD = "out-of-bounds load"
    OUT_OF_BOUNDS_STORE = "out-of-bounds store"
    WRITE_RACE = "write race: a cell stores where another cell stored"
    READ_WRITE_RACE = "read-write race: a cell stores where another cell loads"
    DUPLICATE_ADDRESS = "duplicate addresses in one store"
    STORE_TO_INPUT = "store to an input"
    UNINITIALISED_READ = "uninitialised read"
    UNWRITTEN_OUTPUT = "unwritten output"
    ADDRESS_OVERFLOW = "int32 overflow in address arithmetic"


@dataclass(frozen=True)
class Fault:
    """One error: `cell` is the (x, y, z) of the grid cell, None for what is found after the last cell."""

    kind: FaultKind
    kernel: str
    cell: tuple[int, int, int] | None
    detail: str
    where: str = ""

    def __str__(self) -> str:
        cell = f" in grid cell {self.cell}" if self.cell is not None else ""
        where = f" (at {self.where})" if self.where else ""
        return f"{self.kernel}: {self.kind}{cell}: {self.detail}{where}"


class KernelFault(Exception):
    """A kernel broke a rule of memory; `fault` says which."""

    def __init__(self, fault: Fault):
        self.fault = fault
        super().__init__(str(fault))


class Monitor:
    """The grid cell that runs now, and what was found so far.

    With `collect` the run goes on after a fault: lanes out of bounds are left out, overflowing integers wrap.
    """

    MOST = 100  # faults kept; a wrong index map would report one per cell and access

    def __init__(self, kernel: str, collect: bool):
        self.kernel = kernel
        self.collect = collect
        self.faults: list[Fault] = []
        self.cell = 0
        self.position: tuple[int, int, int] | None = None

    def fault(self, kind: FaultKind, detail: str, site: "Site | None" = None) -> None:
        """Raise, or keep, a fault of the present cell."""
        where = "" if site is None else str(site)
        fault = Fault(kind, self.kernel, self.position, detail, where)
        if not self.collect:
            raise KernelFault(fault)
        if len(self.faults) < self.MOST:
            self.faults.append(fault)


@dataclass(frozen=True)
class Site:
    """Where an operation comes from; the text is made only when it is asked for."""

    operation: Any

    def __str__(self) -> str:
        location = str(self.operation.location)
        lines: Sequence[tuple[str, str]] = re.findall(r'"([^"]+\.py)":(\d+)', location)
        place = ":".join(lines[0]) + ", " if lines else ""
        return place + self.operation.name
