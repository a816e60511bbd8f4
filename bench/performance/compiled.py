"""The compiled half of the report: what a program moves, holds and launches on a GPU that is not there."""

import sys

from bench import ops
from bench.figures import figures
from bench.ops import Titled
from bench.programs import MODES

KERNELS, REFERENCE = "kernels", "XLA reference"


def measure(specs: Titled, target: str) -> list[dict]:
    """Of every problem, mode and implementation; kernels come first."""
    found = []
    for title, spec in specs.items():
        op = ops.of(spec)
        implementations = {KERNELS: "triton", REFERENCE: "xla", **{name: name for name in op.baselines(spec)}}
        for mode in MODES:
            print(f"compiling {title}, {mode} ...", file=sys.stderr, flush=True)
            programs = {name: figures(spec, mode, one, target) for name, one in implementations.items()}
            figures_of = {
                name: {
                    "bytes_moved": one.bytes_moved,
                    "temporary_bytes": one.temporary_bytes,
                    "launches": one.launches,
                }
                for name, one in programs.items()
            }
            found.append({"title": title, "problem": op.describe(spec), "mode": mode, "implementations": figures_of})
    return found
