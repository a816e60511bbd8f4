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
    """At most so many GB moved, GB of temporary memory, launches (those of a loop once) and launches started (times the
    trip count of their loop); None: no such target.
    """

    moved: float | None = None
    temporary: float | None = None
    launches: int | None = None
    started: int | None = None


# Of each variant of `inspect_model`.
TARGETS = {
    "kernels": {"forward": Most(13, launches=210), "training": Most(48, 4.3, 780)},
    "fused matmuls": {"forward": Most(9.5, launches=150), "training": Most(37, 3.6, 520, 650)},
}
PEER = {"forward": Most(20.0, launches=304), "training": Most(65.5, 8.49, 1069), "prefill": Most(25.6)}


def verdicts(programs: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[Verdict]:
    """One for each target; `programs` are figures by name and variant: those of `Most`, bytes in GB."""
    found = []
    for variant, targets in TARGETS.items():
        for name, most in targets.items():
            for what, unit in _UNITS.items():
                bound, figure = getattr(most, what), programs[name][variant][what]
                if bound is not None:
                    found.append(Verdict(f"{name}, {variant}: {unit} <= {bound:g}", figure, figure <= bound))
        ratio = programs["prefill"][variant]["moved"] / programs["forward"][variant]["moved"]
        target = f"prefill / forward, {variant}, GB moved <= {MOST_PREFILL:.2f}"
        found.append(Verdict(target, ratio, ratio <= MOST_PREFILL))
    return found


_UNITS = {"moved": "GB moved", "temporary": "temp GB", "launches": "launches", "started": "started"}
