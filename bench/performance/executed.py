"""The executed half of the report: CPU time and errors of the reference beside the usual formulations, in float32.

Errors against the float64 oracle are of one row of the batch, cut to what the oracle has room for. A formulation that
would need more memory than a part of this machine's is compiled and not run.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from statistics import median

import jax
import jax.numpy as jnp

from bench import ops, parity, tolerance
from bench.measure import interleaved
from bench.modes import Built, build
from bench.ops import Spec, Titled
from bench.problems import shortened
from bench.programs import MODES

REFERENCE = "xla"
PART = 0.4  # of the memory of this machine


def measure(specs: Titled, rounds: int, rows: int | None = None, seed: int = 0) -> list[dict]:
    """Of every problem, in at most so many rows of its batch, mode and implementation; the reference comes first."""
    found = []
    for title, spec in specs.items():
        batch = getattr(spec, "batch", 1)
        spec = replace(spec, dtype=jnp.float32, batch=min(batch, rows or batch))
        print(f"comparing {title} with float64 ...", file=sys.stderr, flush=True)
        errors = _errors(shortened(spec), seed)
        inputs = jax.tree.map(jnp.asarray, ops.of(spec).inputs(spec, seed))
        for mode in MODES:
            print(f"measuring {title}, {mode} ...", file=sys.stderr, flush=True)
            compile_one = partial(build, spec, mode, inputs=inputs, seed=seed)
            found.append({"title": title, "problem": ops.of(spec).describe(spec), "mode": mode} | _case(
                compile_one, (REFERENCE, *ops.of(spec).baselines(spec)), rounds, errors
            ))  # fmt: skip
    return found


def _case(compile_one: Callable[..., Built], names: tuple[str, ...], rounds: int, errors: dict) -> dict:
    programs = {name: compile_one(implementation=name) for name in names}
    fitting = {name: one for name, one in programs.items() if _needs(one) <= PART * memory()}
    samples = interleaved({name: one.run for name, one in fitting.items()}, rounds)
    ms = {name: median(one.total_ms for one in times) for name, times in samples.items()}
    ours = ms.get(REFERENCE)
    return {
        "implementations": {
            name: {
                "temporary_bytes": one.memory.temp_size_in_bytes,
                "samples": [asdict(sample) for sample in samples.get(name, ())],
                "cpu_ms": ms.get(name),
                "ratio": ms[name] / ours if name in ms and ours and errors[name]["passed"] else None,
                "error": errors[name]["error"],
            }
            for name, one in programs.items()
        }
    }


def memory() -> int:
    """Bytes of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _needs(program: Built) -> int:
    sizes = program.memory
    return sizes.temp_size_in_bytes + sizes.argument_size_in_bytes + sizes.output_size_in_bytes


def _errors(spec: Spec, seed: int) -> dict[str, dict]:
    """Of each implementation the largest relative RMS error of all values, and whether ours keep to the policy beside
    it: at most so many times its error."""
    op = ops.of(spec)
    arrays = op.inputs(spec, seed)
    expected = op.truth(spec, arrays)
    ours = parity.evaluate(spec, arrays, REFERENCE)
    found = {}
    for name in (REFERENCE, *op.baselines(spec)):
        lines = parity.compare_values(
            expected, ours, ours if name == REFERENCE else parity.evaluate(spec, arrays, name)
        )
        worst = max(lines, key=lambda line: line.reference.relative_rms)
        found[name] = {
            "passed": all(map(tolerance.within, lines)),
            "error": {"value": worst.name, "relative_rms": worst.reference.relative_rms},
        }
    return found
