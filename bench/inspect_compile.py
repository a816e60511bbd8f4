"""Suite `compile` of `inspect`: what a training step of model S takes to compile as layers are added."""

import sys
from dataclasses import asdict, replace
from pathlib import Path

import jax

from bench import environment, report
from bench.inspect import compile_program, tools
from bench.inspect.targets import find_target
from bench.model_programs import MODEL_S, Shape, program
from bench.targets import Verdict

TARGET = "sm_90"
LAYERS = (8, 32)
MOST = 1.5  # the deeper model's CPU seconds over the other's
WAYS = {"layer after layer": False, "scanned": True}


def run(json_file: Path | None = None) -> None:
    """Compile, print the table, write everything to `json_file` if given. Exits with 1 where wheels are missing."""
    jax.config.update("jax_platforms", "cpu")
    if reason := tools.missing():
        sys.exit(reason)
    record = {
        "versions": tools.versions(),
        "revision": environment.revision(),
        "ways": {way: seconds(scan) for way, scan in WAYS.items()},
    }
    print(text(record))
    if json_file is not None:
        report.write_json(record, json_file)


def seconds(scan: bool) -> list[float]:
    """CPU seconds of the compilers for each depth of `LAYERS`."""
    found = []
    for layers in LAYERS:
        print(f"compiling {layers} layers{', scanned' if scan else ''} ...", file=sys.stderr, flush=True)
        config = replace(MODEL_S.config, num_layers=layers, scan_layers=scan)
        function, arguments = program("training", Shape(config, MODEL_S.batch, MODEL_S.length))
        found.append(compile_program(function, *arguments, target=TARGET, kernels="none").cpu_seconds)
    return found


def verdict(shallow: float, deep: float) -> Verdict:
    """Of the scanned layers."""
    return Verdict(f"scanned, {LAYERS[1]} / {LAYERS[0]} layers <= {MOST:g}", deep / shallow, deep <= MOST * shallow)


def text(record: dict) -> str:
    """A row for each way to run the layers."""
    rows = [
        [way, *(f"{spent:.1f}" for spent in (shallow, deep)), f"{deep / shallow:.2f}"]
        for way, (shallow, deep) in record["ways"].items()
    ]
    one = asdict(verdict(*record["ways"]["scanned"]))
    return "\n\n".join(
        [
            ", ".join(f"{name} {version}" for name, version in record["versions"].items())
            + f"\n{find_target(TARGET).card}, compiled without it: nothing was run.\n"
            "A training step (loss and gradients) of model S with more and fewer layers: CPU s of XLA, Triton and\n"
            "ptxas when it was compiled, perhaps in an earlier run.",
            report.table(["layers run", *(f"{layers} layers" for layers in LAYERS), "ratio"], rows, left=1),
            f"target {one['target']}: {'met' if one['met'] else 'MISSED'} ({one['figure']:.2f})",
        ]
    )
