"""The search for tiles: from those that would run anyway to the best neighbour, and on from there, while there is time.

A neighbour differs in one number: twice or half as much; one stage more or fewer.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from bench.gpu.checks import said
from pallas_kernels._tiles import AnyTiles

MOST_STAGES = 5

Cost = Callable[[Any], float]


@dataclass(frozen=True)
class Trial:
    """Tiles and what they cost, None where they cannot be launched: then the reason."""

    tiles: AnyTiles
    cost: float | None
    reason: str = ""


def search(
    start: AnyTiles, cost: Cost, deadline: float, now: Callable[[], float] = time.monotonic
) -> tuple[list[Trial], bool]:
    """Every trial, the start first, until no neighbour is better or the time is up; and whether it was up.

    Args:
        start: tiles to begin with.
        cost: of tiles; raises where they cannot be launched.
        deadline, now: nothing is tried from `now() >= deadline` on.
    """
    if now() >= deadline:
        return [], True
    trials = {start: _trial(start, cost)}
    best = trials[start]
    while best.cost is not None:
        for tiles in neighbours(best.tiles):
            if tiles in trials:
                continue
            if now() >= deadline:
                return list(trials.values()), True
            trials[tiles] = _trial(tiles, cost)
        better = min((one for one in trials.values() if one.cost is not None), key=lambda one: one.cost)
        if better is best:
            break
        best = better
    return list(trials.values()), False


def neighbours(tiles: AnyTiles) -> Iterator[AnyTiles]:
    """Tiles that differ in one number, without those that no kernel takes."""
    for field in fields(tiles):
        value = getattr(tiles, field.name)
        for other in (value - 1, value + 1) if field.name == "num_stages" else (value // 2, 2 * value):
            if field.name == "num_stages" and other > MOST_STAGES:
                continue
            try:
                yield replace(tiles, **{field.name: other})
            except ValueError:  # such tiles are none
                continue


def _trial(tiles: AnyTiles, cost: Cost) -> Trial:
    try:
        return Trial(tiles, cost(tiles))
    except Exception as error:  # refused, too much shared memory, wrong results: compilers raise what they like
        return Trial(tiles, None, said(error))
