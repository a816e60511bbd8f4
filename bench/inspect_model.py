"""Suite `model` of `inspect`: a whole training step compiled for a GPU that is not there, kernels on and off."""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import jax

from bench import report
from bench.inspect import Program, compile_program, tools
from bench.inspect.targets import find_target
from bench.model_step import BATCH, CONFIG, LENGTH, training_step
from bench.report import table
from pallas_kernels import use_implementation

TARGETS = ("sm_90",)
_ATTENTION_BY_XLA = {"chunked_attention": "xla", "normalized_rotary": "xla"}
IMPLEMENTATIONS = {
    "kernels": {},
    "kernels, attention by XLA": _ATTENTION_BY_XLA,
    "XLA": {"complex_ema": "xla", "timestep_norm": "xla"} | _ATTENTION_BY_XLA,
}


@dataclass(frozen=True)
class StepFigures:
    """A step: launches and bytes moved by kind, a Pallas kernel being a kind of its own."""

    bytes_moved: int
    launches: int
    temporary_bytes: int
    cpu_seconds: float
    launches_by_kind: dict[str, int]
    bytes_by_kind: dict[str, int]


def run(targets: Sequence[str] = TARGETS, json_file: Path | None = None) -> None:
    """Compile, print the tables, write everything to `json_file` if given. Exits with 1 where wheels are missing."""
    jax.config.update("jax_platforms", "cpu")
    if reason := tools.missing():
        sys.exit(reason)
    record = {
        "versions": tools.versions(),
        "model": {"layers": CONFIG.num_layers, "dim": CONFIG.model_dim, "batch": BATCH, "length": LENGTH},
        "targets": [
            {"target": target, "card": find_target(target).card, "steps": _steps(target)}
            for target in dict.fromkeys(targets)
        ],
    }
    print(text(record))
    if json_file is not None:
        report.write_json(record, json_file)


def _steps(target: str) -> dict[str, dict]:
    found = {}
    for name, chosen in IMPLEMENTATIONS.items():
        print(f"compiling a training step with {name} for {target} ...", file=sys.stderr, flush=True)
        with use_implementation(**chosen):
            found[name] = asdict(step_figures(target))
    return found


def step_figures(target: str) -> StepFigures:
    """Of the step under the implementations in force."""
    function, arguments = training_step(CONFIG, BATCH, LENGTH)
    return figures(compile_program(function, *arguments, target=target, kernels="none"))


def figures(compiled: Program) -> StepFigures:
    """Of any compiled program."""
    launches, moved = Counter[str](), Counter[str]()
    for launch in compiled.traffic.launches:
        kind = launch.kernel if launch.kind == "pallas" else launch.kind
        launches[kind] += launch.trips
        moved[kind] += launch.bytes
    return StepFigures(
        compiled.bytes_moved,
        compiled.launches,
        compiled.temporary_bytes,
        compiled.cpu_seconds,
        dict(launches),
        dict(moved.most_common()),
    )


def text(record: dict) -> str:
    """Per target the totals, then what they are made of."""
    model = record["model"]
    sections = [
        "\n".join(
            [
                ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
                "Compiled without a GPU: nothing was run or timed on one. Matmuls are not tuned without a GPU.",
                f"A training step (loss, gradients, AdamW) of a model of {model['layers']} layers of dimension "
                f"{model['dim']}, bfloat16 compute,",
                f"B = {model['batch']}, L = {model['length']}. moved: operands + results of every launch.",
            ]
        )
    ]
    for target in record["targets"]:
        sections += [f"{target['target']}: {target['card']}", _totals(target["steps"]), _kinds(target["steps"])]
    return "\n\n".join(sections)


def _totals(steps: dict) -> str:
    rows = [
        [
            name,
            f"{step['bytes_moved'] / 1e9:.2f}",
            f"{step['temporary_bytes'] / 1e9:.2f}",
            str(step["launches"]),
            f"{step['cpu_seconds']:.1f}",
        ]
        for name, step in steps.items()
    ]
    return table(["operations", "GB moved", "temp GB", "launches", "CPU s to compile"], rows, left=1)


def _kinds(steps: dict) -> str:
    kinds = dict.fromkeys(kind for step in steps.values() for kind in step["bytes_by_kind"])
    rows = []
    for kind in kinds:
        row = [kind]
        for step in steps.values():
            row += [str(step["launches_by_kind"].get(kind, 0)), f"{step['bytes_by_kind'].get(kind, 0) / 1e9:.2f}"]
        rows.append(row)
    header = ["launched", *(part for name in steps for part in (f"{name}: launches", "GB moved"))]
    return table(header, rows, left=1)
