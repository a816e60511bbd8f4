"""Suite `parity` of `inspect`: every output and gradient of the kernels against float64, beside the XLA reference.

The kernels run on two rungs of the ladder: interpreted by Pallas, and as lowered Triton IR executed on CPU. Needs
nothing but the package.
"""

import math
import sys
from collections.abc import Iterable
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

import jax

from bench import environment, ops, parity, report, tolerance
from bench.ops import Spec, Titled

RUNGS = {"triton_interpret": "interpreted", "lowered": "executed IR"}
ALWAYS = ("y", "dx", "o", "dv")  # shown of every spec
LONG_MEMORY = 65536  # tokens from which on the usual formulation is shown too


def run(specs: Titled | None = None, json_file: Path | None = None, *, seed: int = 0) -> None:
    """Print the table, write everything to `json_file` if given. Exits with 1 where the policy is broken."""
    jax.config.update("jax_platforms", "cpu")
    entries = []
    for title, spec in (specs or ops.PARITY).items():
        print(f"comparing {title} ...", file=sys.stderr, flush=True)
        entries.append({"op": ops.of(spec).NAME, "spec": spec.name, "lines": compare(spec, seed)})
    record = {
        "versions": environment.versions(),
        "revision": environment.revision(),
        "seed": seed,
        "policy": {
            "factor": tolerance.FACTOR,
            "gradient_factor": tolerance.GRADIENT_FACTOR,
            "floor_eps": tolerance.FLOOR_EPS,
        },
        "passed": all(line["within"] for entry in entries for line in entry["lines"]),
        "specs": entries,
    }
    print(text(record))
    if json_file is not None:
        report.write_json(record, json_file)
    if not record["passed"]:
        sys.exit(1)


def compare(spec: Spec, seed: int = 0) -> list[dict]:
    """One line per output and gradient: errors on every rung and of the reference, and what the policy says."""
    arrays = ops.of(spec).inputs(spec, seed)
    expected, reference = ops.of(spec).truth(spec, arrays), parity.evaluate(spec, arrays, "xla")
    rungs = {rung: parity.compare_values(expected, parity.evaluate(spec, arrays, rung), reference) for rung in RUNGS}
    usual = {name: parity.evaluate(spec, arrays, name) for name in _usual(spec)}
    found = [_line(dict(zip(rungs, lines, strict=True))) for lines in zip(*rungs.values(), strict=True)]
    for line in found:
        name = line["name"]
        line["usual"] = {form: asdict(parity.errors(values[name], expected[name])) for form, values in usual.items()}
    return found


def _usual(spec: Spec) -> tuple[str, ...]:
    """Other people's formulation, where memory is long; tokens between documents are unknown to it."""
    return () if spec.length < LONG_MEMORY or "segment_ids" in spec.arrays() else ops.of(spec).baselines(spec)


def _line(rungs: dict[str, parity.Line]) -> dict:
    any_rung = next(iter(rungs.values()))
    shares = [share for line in rungs.values() for share in tolerance.shares(line)]
    return {
        "name": any_rung.name,
        "dtype": any_rung.dtype,
        "gradient": any_rung.gradient,
        "peak": any_rung.peak,
        **{rung: asdict(line.kernel) for rung, line in rungs.items()},
        "xla": asdict(any_rung.reference),
        "share": max(math.inf if math.isnan(share) else share for share in shares),
        "within": all(map(tolerance.within, rungs.values())),
    }


def text(record: dict) -> str:
    """A table for each op."""
    sections = [_header(record)]
    for op, entries in groupby(record["specs"], lambda entry: entry["op"]):
        sections.append(f"{op}\n{_table(entries)}")
    sections += filter(None, [_formulations(record["specs"])])
    return "\n\n".join([*sections, _summary(record)])


def _table(entries: Iterable[dict]) -> str:
    """Per spec `ALWAYS` and, of the other outputs and gradients, the one that uses most of what the policy allows."""
    rows = []
    for entry in entries:
        name = entry["spec"]
        for line in _shown(entry["lines"]):
            errors = [_errors(line[of]) for of in (*RUNGS, "xla")]
            rows.append([name, line["name"], *errors, f"{line['share']:.2f}", "ok" if line["within"] else "FAILED"])
            name = ""
    return report.table(["spec", "", *RUNGS.values(), "XLA reference", "share", "policy"], rows, left=2)


def _errors(errors: dict) -> str:
    return f"{errors['relative_rms']:.1e} / {errors['max_abs']:.1e}"


def _formulations(entries: Iterable[dict]) -> str:
    """The usual formulation of a long memory beside the kernels, every output and gradient."""
    rows = [
        [entry["spec"], line["name"], *(_errors(line[rung]) for rung in RUNGS), form, _errors(errors)]
        for entry in entries
        for line in entry["lines"]
        for form, errors in line["usual"].items()
    ]
    header = ["spec", "", *RUNGS.values(), "the usual form", "its errors"]
    return report.table(header, rows, left=2) if rows else ""


def _shown(lines: list[dict]) -> list[dict]:
    always = [line for line in lines if line["name"] in ALWAYS]
    others = [line for line in lines if line["name"] not in ALWAYS]
    return always + sorted(others, key=lambda line: line["share"])[-1:]


def _header(record: dict) -> str:
    policy, lines = record["policy"], sum(len(entry["lines"]) for entry in record["specs"])
    return "\n".join(
        [
            ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
            "On CPU against the float64 oracle: relative RMS / largest error, both over its RMS.",
            "interpreted: the kernels run by Pallas' interpreter; executed IR: their lowered Triton IR run on CPU.",
            f"Policy: each error of a kernel is at most {policy['factor']:g} (gradients {policy['gradient_factor']:g}) "
            f"times that of the XLA reference, or {policy['floor_eps']:g} rounding units.",
            f"share: the largest part of that which a kernel uses. Of {lines} outputs and gradients y, dx (o, dv) and "
            "the one other with",
            "the largest share of each spec are shown; --json FILE writes all.",
        ]
    )


def _summary(record: dict) -> str:
    every = [(f"{entry['op']}: {entry['spec']}", line) for entry in record["specs"] for line in entry["lines"]]
    failures = [f"{spec}, {line['name']} ({line['share']:.2f})" for spec, line in every if not line["within"]]
    if failures:
        return "\n  ".join(["Parity: FAILED (share of what is allowed)", *failures])
    worst = max((line["share"], spec, line["name"]) for spec, line in every)
    return f"Parity: passed, {len(every)} outputs and gradients, largest share {worst[0]:.2f} ({worst[1]}, {worst[2]})"
