"""Suite `toeplitz` of `inspect`: the forward of complex_ema on tensor cores beside the kernels, on an H100.

Which formulation is faster is bounded from below by four times, none of them measured: those of `bench.inspect.cost`
(issue, memory), of the tensor cores at their full rate, and of the sectors of 32 bytes that the L2 cache hands out.
"""

import sys
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

import jax
import jax.numpy as jnp

from bench import environment, ops, report, toeplitz
from bench.figures import figures
from bench.inspect import compile_program, model, tensor_us, tools
from bench.inspect.cost import L2_BANDWIDTH, cache_us
from bench.inspect.targets import find_target
from bench.programs import MODES
from bench.toeplitz import Shape
from bench.work import nest
from pallas_kernels.complex_ema.launch import JOIN
from pallas_kernels.complex_ema.specs import HEADLINE

TARGET = "sm_90"
SHAPES = tuple(Shape(64, steps, features, 4, 512) for features, steps in ((2, 64), (4, 64), (4, 32), (8, 32)))
THREADS = 128  # of a warp on each scheduler


@dataclass(frozen=True)
class Pass:
    """One pass over the sequence: a kernel. Times in microseconds, of a model."""

    form: str
    name: str
    registers: int
    spill_bytes: int
    warps: float  # at most at once on a scheduler
    per_element: float
    waits: int | None  # in a tile, for matmuls and other warps
    issue_us: float
    memory_us: float
    tensor_us: float
    cache_us: float

    @property
    def bound_us(self) -> float:
        """The pass takes at least that long."""
        return max(self.issue_us, self.memory_us, self.tensor_us, self.cache_us)


def run(json_file: Path | None = None) -> None:
    """Compile, print the table, write everything to `json_file` if given. Exits with 1 where wheels are missing."""
    jax.config.update("jax_platforms", "cpu")
    if reason := tools.missing():
        sys.exit(reason)
    passes = [*kernels(), *(one for shape in SHAPES for one in formulation(shape))]
    record = {
        "versions": tools.versions(),
        "revision": environment.revision(),
        "passes": [asdict(one) | {"bound_us": one.bound_us} for one in passes],
    }
    print(text(record))
    if json_file is not None:
        report.write_json(record, json_file)


def kernels() -> list[Pass]:
    """`ends` and `forward` as they are; they use every sector whole."""
    found = []
    for kernel in figures(HEADLINE, MODES[0], "triton", TARGET, detailed=True).kernels:
        if kernel.name == JOIN:  # as it would be in both formulations
            continue
        assert kernel.work is not None
        found.append(
            Pass(
                "float32 (the kernels)",
                kernel.name.removeprefix("complex_ema_"),
                kernel.registers,
                kernel.spill_bytes,
                kernel.blocks * kernel.threads / THREADS,
                kernel.work.per_element,
                None,
                kernel.work.issue_us,
                kernel.work.memory_us,
                0.0,
                cache_us(kernel.work.bytes_issued, find_target(TARGET)),
            )
        )
    return found


def formulation(shape: Shape) -> list[Pass]:
    """`ends` and `emit` of one shape of program."""
    print(f"compiling {shape} ...", file=sys.stderr, flush=True)
    return [_pass(shape, emits) for emits in (False, True)]


def _pass(shape: Shape, emits: bool) -> Pass:
    gpu, spec = find_target(TARGET), HEADLINE
    D, N, T = spec.features, spec.states, shape.steps
    arrays = spec.arrays()
    given = jax.eval_shape(
        partial(toeplitz.matrices, steps=T), *(arrays[name] for name in ("p", "q", "gamma", "omega"))
    )
    rows = spec.batch * spec.length // shape.chunk
    x = jax.ShapeDtypeStruct((rows, shape.chunk, D), spec.dtype)
    start = jax.ShapeDtypeStruct((2, D, rows, N), jnp.float32)
    kernel, inputs = (toeplitz.emit, (x, start, given)) if emits else (toeplitz.ends, (x, given))
    compiled = compile_program(partial(kernel, shape=shape), *inputs, target=TARGET)
    ((launch, kernel),) = compiled.pallas_launches
    (loop,) = nest(kernel, 1)
    modelled = model(kernel, moved_bytes=launch.bytes, trips={loop.header: shape.chunk // T})
    waits = sum(i.base == "BAR" or i.opcode.startswith("WARPGROUP.DEPBAR") for i in loop.instructions)
    blocks = min(kernel.occupancy.blocks, -(-(D // shape.features) * (rows // shape.rows) // gpu.multiprocessors))
    work = _elements() * toeplitz.multiply_adds(shape, N, emits=emits)
    return Pass(
        f"tensor cores, F = {shape.features}, T = {T}",
        "emit" if emits else "ends",
        kernel.registers,
        kernel.spill_bytes,
        blocks * kernel.threads / THREADS,
        len(loop.instructions) * kernel.threads / (shape.rows * T * shape.features),
        waits,
        modelled.issue_us,
        modelled.memory_us,
        tensor_us(work, gpu),
        cache_us((1 + emits) * toeplitz.sector_bytes(_elements(), shape), gpu),
    )


def text(record: dict) -> str:
    """One row for each pass, and what the passes of a form add up to."""
    rows = []
    for form, passes in groupby(record["passes"], lambda one: one["form"]):
        together = list(passes)
        total = sum(one["bound_us"] for one in together)
        for one in together:
            times = [one[f"{unit}_us"] for unit in ("issue", "memory", "tensor", "cache", "bound")]
            rows.append(
                [
                    form if one is together[0] else "",
                    one["name"],
                    str(one["registers"]),
                    str(one["spill_bytes"]),
                    f"{one['warps']:g}",
                    f"{one['per_element']:.1f}",
                    "-" if one["waits"] is None else str(one["waits"]),
                    *(f"{time:.0f}" for time in times),
                    f"{total:.0f}" if one is together[-1] else "",
                ]
            )
    header = [
        "formulation", "pass", "registers", "spills", "warps", "SASS/element", "waits",
        "issue us", "memory us", "tensor us", "L2 us", "at least us", "both",
    ]  # fmt: skip
    return "\n\n".join([_header(record), report.table(header, rows, left=2)])


def _header(record: dict) -> str:
    return "\n".join(
        [
            ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
            f"{find_target(TARGET).card}, compiled without it: nothing was run or timed; every time is a model's.",
            f"complex_ema, {ops.ema.describe(HEADLINE)}: forward.",
            "warps: at once on one of a multiprocessor's four schedulers, at most. waits: of a tile, for a matmul or",
            "for other warps. tensor us: at the full rate. L2 us: sectors of 32 bytes, of which F features fill 2 F,",
            f"at {L2_BANDWIDTH[TARGET] / 1e12:g} TB/s (an assumption). at least us: the largest of the four. Nothing "
            "is known of latency,",
            "of which few warps hide little.",
        ]
    )


def _elements() -> int:
    return HEADLINE.batch * HEADLINE.length * HEADLINE.features
