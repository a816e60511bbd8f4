"""Suite `ops` of `inspect`: timestep_norm compiled for GPUs that are not there, kernels beside the XLA reference.

The headline problem, and every spec named, is looked at in detail; of the other presets only what their kernels need.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import jax
import numpy as np

from bench import inspect_report, report
from bench.figures import ProgramFigures, figures
from bench.inspect import tools
from bench.inspect.targets import find_target
from bench.programs import MODES
from bench.static_targets import verdicts
from pallas_kernels.timestep_norm.specs import HEADLINE, PRESETS, Spec

SPECS = {spec.name: spec for spec in PRESETS}
TARGETS = ("sm_90",)


def run(specs: Sequence[str] | None = None, targets: Sequence[str] = TARGETS, json_file: Path | None = None) -> None:
    """Compile and print the tables; everything goes to `json_file` if given. Exits with 1 where wheels are missing."""
    jax.config.update("jax_platforms", "cpu")
    if reason := tools.missing():
        sys.exit(reason)
    chosen = [SPECS[name] for name in dict.fromkeys(specs or SPECS)]
    detailed = chosen if specs else [HEADLINE]
    record = {
        "versions": tools.versions(),
        "targets": [_target(target, chosen, detailed) for target in dict.fromkeys(targets)],
    }
    print(inspect_report.text(record))
    if json_file is not None:
        report.write_json(record, json_file)


def _target(target: str, specs: Sequence[Spec], detailed: Sequence[Spec]) -> dict:
    record = {"target": target, "card": find_target(target).card, "specs": [], "verdicts": []}
    for spec in specs:
        print(f"compiling {spec.name} for {target} ...", file=sys.stderr, flush=True)
        work = spec in detailed
        kernels = {mode: figures(spec, mode, "triton", target, work=work) for mode in MODES}
        reference = {mode: figures(spec, mode, "xla", target) for mode in MODES} if work else None
        record["specs"].append(_record(spec, kernels, reference))
        if spec == HEADLINE:
            record["verdicts"] = [asdict(verdict) for verdict in verdicts(spec, kernels)]
    return record


def _record(spec: Spec, kernels: dict[str, ProgramFigures], reference: dict[str, ProgramFigures] | None) -> dict:
    return {
        "spec": asdict(spec) | {"dtype": np.dtype(spec.dtype).name},
        "kernels": {mode: asdict(program) for mode, program in kernels.items()},
        "xla": None if reference is None else {mode: asdict(program) for mode, program in reference.items()},
    }
