"""Flat device buffers that know who wrote and read each element.

Offsets count elements of the buffer from its start, in int64. Within one grid cell memory is sequential: what the
threads of one program do to each other between barriers is not modelled.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from bench.inspect.triton_ir.faults import FaultKind, Monitor, Site

_UNINITIALISED, _GIVEN = -2, -1  # writer of an element, where it is no grid cell
_NOBODY, _SEVERAL = -1, -2  # reader of an element, where it is no single grid cell


@dataclass(frozen=True)
class BufferUse:
    """Traffic of one buffer: bytes moved by active lanes, and the smallest and largest element offset touched."""

    name: str
    elements: int
    bytes_loaded: int
    bytes_stored: int
    lowest: int | None
    highest: int | None


class Pointer(NamedTuple):
    """Addresses into one buffer; `offsets` is an int64 scalar or array."""

    buffer: "Buffer"
    offsets: Any


def poison(dtype: np.dtype) -> Any:
    """The value of what must not be used: NaN, or the largest integer."""
    if dtype == np.bool_:
        return np.True_
    if dtype.kind in "iu":
        return dtype.type(np.iinfo(dtype).max)
    return np.asarray(np.nan).astype(dtype)[()]


class Buffer:
    """One array of the kernel: an operand, a result, or both where they alias.

    Args:
        values: what the buffer holds at the start; None for a result, which starts as poison.
        writable: results, and operands that a result aliases.
        virtual: check addresses only: nothing is stored, loads give zeros, races and initialisation go unchecked.
    """

    def __init__(
        self,
        monitor: Monitor,
        name: str,
        shape: tuple[int, ...],
        dtype: np.dtype,
        *,
        values: np.ndarray | None = None,
        writable: bool = False,
        virtual: bool = False,
    ):
        self.name = f"{name} {dtype.name}[{','.join(map(str, shape))}]"
        self.shape, self.dtype, self.virtual, self.writable = shape, dtype, virtual, writable
        self.size = int(np.prod(shape, dtype=object))
        self.bytes_loaded = self.bytes_stored = 0
        self._lowest: int | None = None
        self._highest: int | None = None
        self._monitor = monitor
        self._tracked = writable and not virtual
        if virtual:
            return
        self.data = np.full(self.size, poison(dtype), dtype) if values is None else np.array(values, dtype).reshape(-1)
        if writable:
            self._writer = np.full(self.size, _UNINITIALISED if values is None else _GIVEN, np.int32)
            self._reader = np.full(self.size, _NOBODY, np.int32)
            self._order = np.zeros(self.size, np.int32)

    @property
    def use(self) -> BufferUse:
        """The traffic so far."""
        return BufferUse(self.name, self.size, self.bytes_loaded, self.bytes_stored, self._lowest, self._highest)

    @property
    def values(self) -> np.ndarray:
        """The contents as an array."""
        return self.data.reshape(self.shape)

    def check_written(self) -> None:
        """A fault if something is left that nothing gave a value."""
        missing = np.flatnonzero(self._writer == _UNINITIALISED) if self._tracked else np.empty(0, np.int64)
        if missing.size:
            detail = f"{missing.size} of {self.size} elements of {self.name}, the first at offset {missing[0]}"
            self._monitor.fault(FaultKind.UNWRITTEN_OUTPUT, detail)

    def load(self, offsets: Any, site: Site) -> Any:
        """The elements at `offsets` (all lanes active)."""
        inside = self._bounded(offsets, FaultKind.OUT_OF_BOUNDS_LOAD, site)
        self.bytes_loaded += offsets.size * self.dtype.itemsize
        if inside is not None:
            values = np.full(offsets.shape, poison(self.dtype), self.dtype)
            values[inside] = self._read(offsets[inside], site)
            return values
        return self._read(offsets, site)

    def store(self, offsets: Any, values: Any, site: Site) -> None:
        """Write `values`, of the shape of `offsets` (all lanes active)."""
        if not self.writable:
            self._monitor.fault(FaultKind.STORE_TO_INPUT, self.name, site)
            return
        inside = self._bounded(offsets, FaultKind.OUT_OF_BOUNDS_STORE, site)
        self.bytes_stored += offsets.size * self.dtype.itemsize
        if inside is not None:
            offsets, values = offsets[inside], values[inside]
        if self.virtual or not offsets.size:
            return
        self._check_store(np.asarray(offsets), site)
        self.data[offsets] = values
        self._writer[offsets] = self._monitor.cell

    def _read(self, offsets: Any, site: Site) -> Any:
        if self.virtual:
            return np.zeros(np.shape(offsets), self.dtype)[()]
        if self._tracked:
            self._check_load(np.asarray(offsets), site)
        return self.data[offsets]

    def _bounded(self, offsets: Any, kind: FaultKind, site: Site) -> Any:
        """None if all offsets lie inside; otherwise a fault and the mask of those that do."""
        if not offsets.size:
            return None
        low, high = int(offsets.min()), int(offsets.max())
        self._lowest = low if self._lowest is None else min(self._lowest, low)
        self._highest = high if self._highest is None else max(self._highest, high)
        if low >= 0 and high < self.size:
            return None
        self._monitor.fault(kind, f"offsets {low}..{high} of {self.name}, which has {self.size} elements", site)
        return (offsets >= 0) & (offsets < self.size)

    def _check_load(self, offsets: np.ndarray, site: Site) -> None:
        cell = self._monitor.cell
        writers = self._writer[offsets]
        if (writers == _UNINITIALISED).any():
            self._complain(FaultKind.UNINITIALISED_READ, offsets, writers == _UNINITIALISED, site)
        others = (writers >= 0) & (writers != cell)
        if others.any():
            self._complain(FaultKind.READ_WRITE_RACE, offsets, others, site)
        readers = self._reader[offsets]
        self._reader[offsets] = np.where((readers == _NOBODY) | (readers == cell), cell, _SEVERAL)

    def _check_store(self, offsets: np.ndarray, site: Site) -> None:
        cell = self._monitor.cell
        writers, readers = self._writer[offsets], self._reader[offsets]
        others = (writers >= 0) & (writers != cell)
        if others.any():
            self._complain(FaultKind.WRITE_RACE, offsets, others, site)
        others = (readers != _NOBODY) & (readers != cell)
        if others.any():
            self._complain(FaultKind.READ_WRITE_RACE, offsets, others, site)
        order = np.arange(offsets.size, dtype=np.int32).reshape(offsets.shape)
        self._order[offsets] = order  # of lanes with one address a single one leaves its number
        lost = self._order[offsets] != order
        if lost.any():
            self._complain(FaultKind.DUPLICATE_ADDRESS, offsets, lost, site)

    def _complain(self, kind: FaultKind, offsets: np.ndarray, lanes: np.ndarray, site: Site) -> None:
        count, first = np.count_nonzero(lanes), int(offsets[lanes].min())
        self._monitor.fault(kind, f"{count} elements of {self.name}, the first at offset {first}", site)
