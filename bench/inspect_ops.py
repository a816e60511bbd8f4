"""Suite `ops` of `inspect`: the ops compiled for GPUs that are not there, kernels beside XLA.

The problems that have targets, and every spec named, are looked at in detail; of the other presets only what their
kernels need.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import jax
import numpy as np

from bench import attention_targets, compile_times, ema_targets, environment, inspect_report, norm_targets, ops, report
from bench.figures import ProgramFigures, figures
from bench.inspect import tools
from bench.inspect.targets import find_target
from bench.ops import Spec, Titled
from bench.programs import MODES

TARGETS = ("sm_90",)
VERDICTS = {
    "timestep_norm: headline": norm_targets.verdicts,
    "complex_ema: headline": ema_targets.plain,
    "complex_ema: headline, packed": ema_targets.packed,
    "chunked_attention: headline": attention_targets.verdicts,
}


def run(specs: Titled | None = None, targets: Sequence[str] = TARGETS, json_file: Path | None = None) -> None:
    """Compile and print the tables; everything goes to `json_file` if given. Exits with 1 where wheels are missing."""
    jax.config.update("jax_platforms", "cpu")
    if reason := tools.missing():
        sys.exit(reason)
    chosen = specs or ops.PRESETS
    detailed = chosen if specs else VERDICTS
    record = {
        "versions": tools.versions(),
        "revision": environment.revision(),
        "targets": [
            {
                "target": target,
                "card": find_target(target).card,
                "specs": [_spec(title, spec, target, title in detailed) for title, spec in chosen.items()],
            }
            for target in dict.fromkeys(targets)
        ],
    }
    print(inspect_report.text(record))
    if json_file is not None:
        report.write_json(record, json_file)


def _spec(title: str, spec: Spec, target: str, detailed: bool) -> dict:
    print(f"compiling {title} for {target} ...", file=sys.stderr, flush=True)
    op = ops.of(spec)
    kernels = {mode: figures(spec, mode, "triton", target, detailed=detailed) for mode in MODES}
    others = {"XLA reference": "xla", **{name: name for name in op.baselines(spec)}} if detailed else {}
    judge = VERDICTS.get(title) if detailed else None
    program, arrays = op.program(spec, MODES[1], "triton")  # which launches every kernel there is
    seconds = compile_times.kernel_seconds(program, arrays, target=target) if detailed else {}
    return {
        "op": op.NAME,
        "problem": op.describe(spec),
        "spec": asdict(spec) | {"dtype": np.dtype(spec.dtype).name},
        "kernels": _plain(kernels),
        "others": {
            name: _plain({mode: figures(spec, mode, implementation, target) for mode in MODES})
            for name, implementation in others.items()
        },
        "least_multiply_adds": {mode: op.least_multiply_adds(spec, mode) for mode in MODES},
        "kernel_seconds": seconds,
        "verdicts": []
        if judge is None
        else [asdict(verdict) for verdict in (*judge(spec, kernels), *compile_times.verdicts(seconds))],
    }


def _plain(programs: dict[str, ProgramFigures]) -> dict:
    return {mode: asdict(program) for mode, program in programs.items()}
