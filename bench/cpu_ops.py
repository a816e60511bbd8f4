"""Suite `ops` on CPU: the pure-jnp complex EMA against plain JAX formulations of it."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import jax

from bench import environment, report
from bench.cases import Case, measure_cases
from bench.measure import growth_exponent
from bench.programs import LARGEST_MODULUS, MODES, SMALLEST_MODULUS, random_inputs
from bench.targets import ratios, verdicts

LENGTHS = (512, 1024, 2048, 4096, 8192)
ROUNDS = 7
BATCH, FEATURES, STATES = 2, 256, 16
MEAN_DOCUMENT = 200
SEED = 0


def run(
    lengths: Sequence[int] = LENGTHS, rounds: int = ROUNDS, json_file: Path | None = None, png: Path | None = None
) -> None:
    """Measure at each of `lengths`, print the tables, write everything to `json_file` and draw it in `png` if given."""
    jax.config.update("jax_platforms", "cpu")
    lengths = sorted(set(lengths))
    record = {
        "versions": environment.versions(),
        "revision": environment.revision(),
        "machine": environment.machine(),
        "config": {
            "suite": "ops",
            "lengths": lengths,
            "rounds": rounds,
            "batch": BATCH,
            "features": FEATURES,
            "states": STATES,
            "dtype": "float32",
            "modulus": [SMALLEST_MODULUS, LARGEST_MODULUS],
            "mean_document": MEAN_DOCUMENT,
            "seed": SEED,
        },
        "load_average": {"before": environment.load_average()},
    }
    cases = []
    for length in lengths:
        print(f"measuring L = {length} ...", file=sys.stderr, flush=True)
        inputs = random_inputs(BATCH, length, FEATURES, STATES, MEAN_DOCUMENT, SEED)
        cases += measure_cases(inputs, rounds)
    record["load_average"]["after"] = environment.load_average()
    record |= summary(cases)
    print(report.text(record))
    if json_file is not None:
        report.write_json(record, json_file)
    if png is not None:
        from bench import pictures  # matplotlib is of the extra bench

        pictures.cpu_ops(record, png)


def summary(cases: Sequence[Case]) -> dict:
    """Cases, ratios, verdicts and growth exponents as plain data; no ratio unless every parity check passed."""
    failures = [
        f"{case.mode}, L = {case.length}: {', '.join(case.parity_failures)}" for case in cases if case.parity_failures
    ]
    passed = not failures
    return {
        "parity": {"passed": passed, "failures": failures},
        "cases": [{**asdict(case), "ratios": ratios(case) if passed else None} for case in cases],
        "targets": [asdict(verdict) for verdict in verdicts(cases)] if passed else None,
        "growth": {mode: _growth([case for case in cases if case.mode == mode]) for mode in MODES},
    }


def _growth(cases: Sequence[Case]) -> dict[str, dict[str, float | None]]:
    lengths = [case.length for case in cases]
    return {
        name: {
            "cpu_time": growth_exponent(lengths, [case.programs[name].median.total_ms for case in cases]),
            "temp_memory": growth_exponent(lengths, [case.programs[name].temp_bytes for case in cases]),
        }
        for name in cases[0].programs
    }
