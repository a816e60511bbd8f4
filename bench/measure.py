"""CPU time of programs measured side by side, and how a cost grows with the length.

CPU time is what the process and all its threads used (`resource.getrusage`), so neither waiting for a core nor the
number of cores enters. User and system time are kept apart: system time is mostly the kernel handing out fresh pages,
a cost of the temporaries a program allocates.
"""

import math
import resource
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

_SAMPLE_MS = 50.0  # a sample repeats its program until about this much CPU time is used


@dataclass(frozen=True)
class CpuTime:
    """CPU milliseconds of one call."""

    user_ms: float
    system_ms: float
    total_ms: float


def interleaved(programs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[CpuTime]]:
    """One sample per program and round: a, b, c, then c, b, a, and so on, after two warm-up calls of each.

    A program must return only when its work is done.
    """
    repeats = {}
    for name, program in programs.items():
        program()
        warm = _sample(program, 1)
        repeats[name] = max(1, math.ceil(_SAMPLE_MS / max(warm.total_ms, 0.1)))
    samples: dict[str, list[CpuTime]] = {name: [] for name in programs}
    for name in turns(programs, rounds):
        samples[name].append(_sample(programs[name], repeats[name]))
    return samples


def turns(names: Iterable[str], rounds: int) -> Iterator[str]:
    """Whose turn it is: a, b, c, then c, b, a, and so on."""
    order = list(names)
    for number in range(rounds):
        yield from order if number % 2 == 0 else order[::-1]


def _sample(program: Callable[[], object], repeats: int) -> CpuTime:
    before = resource.getrusage(resource.RUSAGE_SELF)
    for _ in range(repeats):
        program()
    after = resource.getrusage(resource.RUSAGE_SELF)
    user = (after.ru_utime - before.ru_utime) * 1e3 / repeats
    system = (after.ru_stime - before.ru_stime) * 1e3 / repeats
    return CpuTime(user, system, user + system)


def median_time(samples: Sequence[CpuTime]) -> CpuTime:
    """Medians of user, system and total time, each on its own (so the first two need not add up to the third)."""
    return CpuTime(
        median(s.user_ms for s in samples), median(s.system_ms for s in samples), median(s.total_ms for s in samples)
    )


def growth_exponent(lengths: Sequence[int], costs: Sequence[float]) -> float | None:
    """The b of `cost = a length^b`: least-squares slope of log cost over log length.

    None with fewer than two different lengths or a cost that is not positive.
    """
    if len(set(lengths)) < 2 or min(costs) <= 0:
        return None
    return float(np.polyfit(np.log(lengths), np.log(costs), 1)[0])
