"""Suite `tiles` of `inspect`: other tiles for the attention kernels beside the chosen ones, on an H100.

Bounds from below, none of them measured: tensor cores at their full rate, and what is loaded and stored at the rate of
the L2 cache, as if no load ever hit a cache above it.
"""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import jax

from bench import environment, ops, report
from bench.figures import figures
from bench.inspect import tools
from bench.inspect.cost import L2_BANDWIDTH, cache_us
from bench.inspect.targets import find_target
from bench.programs import MODES
from pallas_kernels import AttentionTiles, use_tiles
from pallas_kernels.chunked_attention.launch import DK, DQ, DV, FORWARD
from pallas_kernels.chunked_attention.specs import HEADLINE

TARGET = "sm_90"
_T = AttentionTiles  # block_q, block_k, block_v, block_d, num_warps, num_stages
OTHERS = {
    FORWARD: (_T(64, 64, 512, 256, 8, 2), _T(64, 64, 256, 256, 8, 2), _T(128, 64, 128, 256, 8, 2)),
    DQ: (_T(64, 64, 128, 256, 8, 2), _T(128, 64, 64, 256, 8, 3)),
    DK: (_T(64, 64, 128, 256, 8, 2), _T(64, 128, 64, 256, 8, 3)),
    DV: (_T(64, 64, 512, 256, 8, 2), _T(64, 64, 256, 256, 8, 2)),
}


@dataclass(frozen=True)
class Choice:
    """One kernel with some tiles; times in microseconds, of a model."""

    kernel: str
    tiles: str
    chosen: bool
    registers: int
    spill_bytes: int
    shared_bytes: int
    multiply_adds: int
    bytes_issued: int
    tensor_us: float
    cache_us: float


def run(json_file: Path | None = None) -> None:
    """Compile, print the table, write everything to `json_file` if given. Exits with 1 where wheels are missing."""
    jax.config.update("jax_platforms", "cpu")
    if reason := tools.missing():
        sys.exit(reason)
    found = [choice(kernel, tiles) for kernel, others in OTHERS.items() for tiles in (None, *others)]
    record = {
        "versions": tools.versions(),
        "revision": environment.revision(),
        "choices": [asdict(one) for one in found],
    }
    print(text(record))
    if json_file is not None:
        report.write_json(record, json_file)


def choice(kernel: str, tiles: AttentionTiles | None) -> Choice:
    """A kernel of the headline problem with these tiles, or with those of the heuristic."""
    print(f"compiling {kernel} ...", file=sys.stderr, flush=True)
    with use_tiles(**({} if tiles is None else {kernel: tiles})):
        program = figures(HEADLINE, MODES[1], "triton", TARGET, detailed=True)
    (one,) = (one for one in program.kernels if one.name == kernel)
    assert one.products is not None
    return Choice(
        kernel.removeprefix("chunked_attention_"),
        ", ".join(f"{count} {name}" for name, count in one.tile.items()),
        tiles is None,
        one.registers,
        one.spill_bytes,
        one.shared_bytes,
        one.products.multiply_adds,
        one.products.bytes_issued,
        one.products.tensor_us,
        cache_us(one.products.bytes_issued, find_target(TARGET)),
    )


def text(record: dict) -> str:
    """One row for each choice."""
    rows = [
        [
            one["kernel"] if one["chosen"] else "",
            one["tiles"],
            *(str(one[key]) for key in ("registers", "spill_bytes", "shared_bytes")),
            f"{one['multiply_adds'] / 1e9:.2f}",
            f"{one['bytes_issued'] / 1e9:.2f}",
            *(f"{one[key]:.0f}" for key in ("tensor_us", "cache_us")),
        ]
        for one in record["choices"]
    ]
    header = ["kernel", "tiles", "registers", "spills", "shared", "G multiply-adds", "GB issued", "tensor us", "L2 us"]
    return "\n\n".join([_header(record), report.table(header, rows, left=2)])


def _header(record: dict) -> str:
    return "\n".join(
        [
            ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
            f"{find_target(TARGET).card}, compiled without it: nothing was run or timed; every time is a model's.",
            f"chunked_attention, {ops.of(HEADLINE).describe(HEADLINE)}.",
            "The first row of each kernel is what it is launched with. tensor us: at the full rate. L2 us: all loads",
            f"and stores at {L2_BANDWIDTH[TARGET] / 1e12:g} TB/s (an assumption: no data sheet has it).",
        ]
    )
