"""Speed ratios of one case and the targets they are held against.

A ratio is the CPU time (user + system) of a baseline over that of ours, both medians of the same interleaved rounds;
`better` is the faster baseline. No ratio exists unless the parity check of the whole run passed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.cases import Case

FORWARD_FROM_LENGTH = 2048
FORWARD_VS_BETTER = 1.0
FORWARD_VS_FFT = 7.0
FORWARD_BACKWARD_VS_BETTER = {2048: 3.3, 8192: 4.5}


@dataclass(frozen=True)
class Verdict:
    """A target, the ratio measured, and whether it was met."""

    target: str
    figure: float
    met: bool


def ratios(case: Case) -> dict[str, float]:
    """Baseline time over ours: `fft/ours`, `scan/ours` and `better/ours`."""
    ours, fft, scan = (case.programs[name].median.total_ms for name in ("ours", "fft", "scan"))
    return {"fft/ours": fft / ours, "scan/ours": scan / ours, "better/ours": min(fft, scan) / ours}


def verdicts(cases: Sequence[Case]) -> list[Verdict]:
    """One verdict per target and length measured."""
    found = []
    for case in cases:
        for ratio, least in _targets(case):
            figure = ratios(case)[ratio]
            name = f"{case.mode}, L = {case.length}: {ratio} >= {least:g}"
            found.append(Verdict(name, figure, figure >= least))
    return found


def _targets(case: Case) -> list[tuple[str, float]]:
    if case.mode == "forward":
        targets = [("better/ours", FORWARD_VS_BETTER), ("fft/ours", FORWARD_VS_FFT)]
        return targets if case.length >= FORWARD_FROM_LENGTH else []
    least = FORWARD_BACKWARD_VS_BETTER.get(case.length)
    return [] if least is None else [("better/ours", least)]
