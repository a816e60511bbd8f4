"""Suite `model` of `inspect`: the programs of whole models compiled for a GPU that is not there.

Model S with kernels and without them, and one layer of larger models: what two layers take beyond one.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import jax

from bench import environment, model_report, model_targets, report
from bench.inspect import Program, compile_program, tools
from bench.inspect.targets import find_target
from bench.model_programs import LARGE, MODEL_S, PROGRAMS, Shape, large, program
from bench.sources import Line, by_line
from bench.targets import Verdict
from megalodon_jax.config import GemmBackend
from pallas_kernels import use_implementation

TARGETS = (model_targets.TARGET,)
_OPS: tuple[str, ...] = ("complex_ema", "timestep_norm", "chunked_attention", "normalized_rotary", "feature_norm")
NO_TRITON = {"xla_gpu_enable_triton_gemm": False}


@dataclass(frozen=True)
class Variant:
    """Implementations of the operations, options of the compiler, and what makes the matmuls of a model."""

    implementations: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, bool] = field(default_factory=dict)
    gemm_backend: GemmBackend = "default"


VARIANTS = {
    "kernels": Variant(),
    "kernels, no Triton matmuls": Variant(options=NO_TRITON),
    "fused matmuls": Variant(gemm_backend="fused"),
    "fused matmuls, no Triton matmuls": Variant(options=NO_TRITON, gemm_backend="fused"),
    "XLA": Variant(dict.fromkeys(_OPS, "xla")),
}
_OF_WHOLE_STEP = OF_LAYERS = ("kernels", "fused matmuls")
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
    record = {
        "versions": tools.versions(),
        "revision": environment.revision(),
        "targets": [_target(target) for target in dict.fromkeys(targets)],
    }
    print(model_report.text(record))
    if json_file is not None:
        report.write_json(record, json_file)


def _target(target: str) -> dict:
    model = {
        # The optimizer is XLA's in any case.
        name: {one: measure(name, one, target) for one in (VARIANTS if name != "whole step" else _OF_WHOLE_STEP)}
        for name in PROGRAMS
    }
    return {
        "target": target,
        "card": find_target(target).card,
        "model": {name: {variant: asdict(one) for variant, one in by.items()} for name, by in model.items()},
        "layers": {
            model: {name: {one: _layer(name, one, model, target) for one in OF_LAYERS} for name in LAYER_PROGRAMS}
            for model in LARGE
        },
        "verdicts": [asdict(one) for one in judge(model)] if target == model_targets.TARGET else [],
    }


def judge(model: Mapping[str, Mapping[str, Figures]]) -> list[Verdict]:
    """The targets of model S."""
    return model_targets.verdicts(
        {
            name: {
                variant: {
                    "moved": one.bytes_moved / 1e9, "temporary": one.temporary_bytes / 1e9,
                    "launches": one.launches, "started": one.started,
                }
                for variant, one in by.items()
            }
            for name, by in model.items()
        }
    )  # fmt: skip


def measure(name: str, variant: str, target: str, shape: Shape = MODEL_S) -> Figures:
    """Compile a program of `PROGRAMS`."""
    chosen = VARIANTS[variant]
    config = replace(shape.config, gemm_backend=chosen.gemm_backend)
    print(
        f"compiling {name}, {config.num_layers} layers of dimension {config.model_dim}, {variant}, {target} ...",
        file=sys.stderr,
        flush=True,
    )
    with use_implementation(**chosen.implementations):
        function, arguments = program(name, replace(shape, config=config))
        compiled = compile_program(
            function, *arguments, target=target, options=dict(chosen.options), kernels="none", lines=True
        )
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


def _layer(program: str, variant: str, model: str, target: str) -> dict[str, int]:
    one, two = (asdict(measure(program, variant, target, large(model, layers))) for layers in (1, 2))
    return {figure: two[figure] - one[figure] for figure in ("bytes_moved", "temporary_bytes", "launches", "started")}
