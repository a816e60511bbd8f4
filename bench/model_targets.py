"""The targets of the programs of model S on an H100, and what the best peer's moved.

A peer's figures are those of a peer's library, compiled the same way.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from bench.targets import Verdict

TARGET = "sm_90"
MOST_PREFILL = 1.10  # times the bytes of the forward


@dataclass(frozen=True)
class Most:
    """At most so many GB moved, GB of temporary memory and launches (those of a loop once); None: no such target."""

    moved: float | None = None
    temporary: float | None = None
    launches: int | None = None


TARGETS = {"forward": Most(13, launches=210), "training": Most(48, 4.3, 780)}
PEER = {"forward": Most(20.0, launches=304), "training": Most(65.5, 8.49, 1069), "prefill": Most(25.6)}


def verdicts(programs: Mapping[str, Mapping[str, float]]) -> list[Verdict]:
    """One for each target; `programs` are figures by name: `moved`, `temporary` (GB) and `launches`."""
    found = []
    for name, most in TARGETS.items():
        for what, unit in (("moved", "GB moved"), ("temporary", "temp GB"), ("launches", "launches")):
            least, figure = getattr(most, what), programs[name][what]
            if least is not None:
                found.append(Verdict(f"{name}: {unit} <= {least:g}", figure, figure <= least))
    ratio = programs["prefill"]["moved"] / programs["forward"]["moved"]
    return [*found, Verdict(f"prefill / forward, GB moved <= {MOST_PREFILL:.2f}", ratio, ratio <= MOST_PREFILL)]
