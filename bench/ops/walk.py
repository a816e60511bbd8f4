"""How a program of a kernel walks over its part of a sequence."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Walk:
    """What the static figures need to know of it.

    Attributes:
        tokens: of a tile.
        chunks: that share a sequence.
        elements: of x in a tile.
        trips: of the loop over tiles, which is the last, and of the loops around it, outermost first.
        others: trips of every other loop.
    """

    tokens: int
    chunks: int
    elements: int
    trips: tuple[int, ...]
    others: int
