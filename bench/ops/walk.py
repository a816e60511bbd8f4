"""How a program of a kernel walks over its part of a sequence."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Walk:
    """What the static figures need to know of it.

    Attributes:
        tile: what a program works on, by name: tokens of a tile, chunks that share a sequence.
        elements: of x in a tile.
        trips: of the loop over tiles, which is the last, and of the loops around it, outermost first. None where
            programs walk differently far, and matrix products are what takes time.
        others: trips of every other loop.
    """

    tile: dict[str, int]
    elements: int
    trips: tuple[int, ...] | None
    others: int
