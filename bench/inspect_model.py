"""Suite `model` of `inspect`: the programs of whole models compiled for a GPU that is not there.

Model S with kernels and without them, and one layer of larger models: what two layers take beyond one.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import jax

from bench import model_report, model_targets, report
from bench.inspect import Program, compile_program, tools
from bench.inspect.targets import find_target
from bench.model_programs import LARGE, MODEL_S, PROGRAMS, Shape, large, program
from bench.sources import Line, by_line
from bench.targets import Verdict
from pallas_kernels import use_implementation

TARGETS = (model_targets.TARGET,)
_OPS: tuple[str, ...] = ("complex_ema", "timestep_norm", "chunked_attention", "normalized_rotary")
NO_TRITON = {"xla_gpu_enable_triton_gemm": False}
# Implementations of the operations, and options of the compiler.
VARIANTS: dict[str, tuple[dict[str, str], dict[str, bool]]] = {
    "kernels": ({}, {}),
    "kernels, no Triton matmuls": ({}, NO_TRITON),
    "XLA": (dict.fromkeys(_OPS, "xla"), {}),
}
LAYER_PROGRAMS = ("forward", "training", "prefill", "decode")


@dataclass(frozen=True)
class Figures:
    """Of one program. `launches`: those of a loop once; `started`: times its trip count."""

    bytes_moved: int
    temporary_bytes: int
    launches: int
    started: int
    cpu_seconds: float
    pallas_kernels: dict[str, int]  # launches by name
    lines: dict[str, Line]


def run(targets: Sequence[str] = TARGETS, json_file: Path | None = None) -> None:
    """Compile, print the tables, write everything to `json_file` if given. Exits with 1 where wheels are missing."""
    jax.config.update("jax_platforms", "cpu")
    if reason := tools.missing():
        sys.exit(reason)
    record = {"versions": tools.versions(), "targets": [_target(target) for target in dict.fromkeys(targets)]}
    print(model_report.text(record))
    if json_file is not None:
        report.write_json(record, json_file)


def _target(target: str) -> dict:
    model = {
        # The optimizer is XLA's in any case.
        name: {one: measure(name, one, target) for one in (VARIANTS if name != "whole step" else ("kernels",))}
        for name in PROGRAMS
    }
    return {
        "target": target,
        "card": find_target(target).card,
        "model": {name: {variant: asdict(one) for variant, one in by.items()} for name, by in model.items()},
        "layers": {name: {one: _layer(one, name, target) for one in LAYER_PROGRAMS} for name in LARGE},
        "verdicts": [asdict(one) for one in judge(model)] if target == model_targets.TARGET else [],
    }


def judge(model: Mapping[str, Mapping[str, Figures]]) -> list[Verdict]:
    """The targets of model S."""
    return model_targets.verdicts(
        {
            name: {
                "moved": by["kernels"].bytes_moved / 1e9,
                "temporary": by["kernels"].temporary_bytes / 1e9,
                "launches": by["kernels"].launches,
            }
            for name, by in model.items()
        }
    )


def measure(name: str, variant: str, target: str, shape: Shape = MODEL_S) -> Figures:
    """Compile a program of `PROGRAMS`."""
    config = shape.config
    print(
        f"compiling {name}, {config.num_layers} layers of dimension {config.model_dim}, {variant}, {target} ...",
        file=sys.stderr,
        flush=True,
    )
    implementations, options = VARIANTS[variant]
    with use_implementation(**implementations):
        function, arguments = program(name, shape)
        compiled = compile_program(function, *arguments, target=target, options=options, kernels="none", lines=True)
    return figures(compiled)


def figures(compiled: Program) -> Figures:
    """Of any program compiled with `lines=True`."""
    pallas = {kernel: len(compiled.launches_of(kernel)) for kernel in compiled.pallas_kernels}
    return Figures(
        compiled.bytes_moved,
        compiled.temporary_bytes,
        compiled.static_launches,
        compiled.launches,
        compiled.cpu_seconds,
        pallas,
        by_line(compiled),
    )


def _layer(program: str, model: str, target: str) -> dict[str, int]:
    one, two = (asdict(measure(program, "kernels", target, large(model, layers))) for layers in (1, 2))
    return {figure: two[figure] - one[figure] for figure in ("bytes_moved", "temporary_bytes", "launches", "started")}
