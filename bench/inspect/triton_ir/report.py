"""What one run of one kernel did: faults, traffic, operations."""

from dataclasses import dataclass

from bench.inspect.triton_ir.faults import Fault
from bench.inspect.triton_ir.memory import BufferUse


@dataclass(frozen=True)
class Report:
    """What one run of one kernel did.

    Attributes:
        cells: number of grid cells run.
        faults: empty, unless faults were collected.
        buffers: traffic of each array; aliased arrays appear once.
        operations: tile operations executed, by name, without those on constants; a reduction counts its combining
            steps too.
        multiply_adds: of all matrix products.
    """

    name: str
    grid: tuple[int, int, int]
    cells: int
    faults: tuple[Fault, ...]
    buffers: tuple[BufferUse, ...]
    operations: dict[str, int]
    multiply_adds: int

    @property
    def bytes_loaded(self) -> int:
        """Bytes read by active lanes, caches aside."""
        return sum(buffer.bytes_loaded for buffer in self.buffers)

    @property
    def bytes_stored(self) -> int:
        """Bytes written by active lanes."""
        return sum(buffer.bytes_stored for buffer in self.buffers)
