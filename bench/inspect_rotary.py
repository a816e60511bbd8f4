"""Suite `rotary` of `inspect`: queries and keys made in a pass of their own, or inside the attention kernels (H100).

Both passes (XLA's, and that of `normalized_rotary`) are compiled in front of the attention kernels. The third form was
not built: its bytes are those of the compiled attention kernels with z in the place of q and k, and its work is one
normalisation and turn for each element of q and k that those kernels load, at the instructions that the compiled pass
takes for one.
"""

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
import jax.numpy as jnp

from bench import environment, ops, report
from bench.figures import figures
from bench.inspect import Program, compile_program, tools
from bench.inspect.lowering import lower, triton_calls
from bench.inspect.targets import find_target
from bench.inspect.triton_ir import check_addresses
from bench.ops import attention
from bench.programs import MODES
from pallas_kernels import normalized_rotary_attention, use_implementation
from pallas_kernels.chunked_attention.specs import HEADLINE
from pallas_kernels.normalized_rotary.specs import HEADLINE as PASS

TARGET = "sm_90"
INSIDE = "inside the attention kernels (not built)"
BY_A_KERNEL = "a pass by a kernel"
FORMS = {"a pass by XLA": {"normalized_rotary": "xla"}, BY_A_KERNEL: {}}


@dataclass(frozen=True)
class Form:
    """One program in one form; `elements` of queries and keys are made, each time one is needed."""

    mode: str
    form: str
    bytes_moved: int
    launches: int
    elements: int
    issue_us: float | None  # of making them, modelled; None where XLA does it


def run(json_file: Path | None = None) -> None:
    """Compile, print the table, write everything to `json_file` if given. Exits with 1 where wheels are missing."""
    jax.config.update("jax_platforms", "cpu")
    if reason := tools.missing():
        sys.exit(reason)
    found = [form for mode in MODES for form in forms(mode)]
    record = {
        "versions": tools.versions(),
        "revision": environment.revision(),
        "forms": [asdict(form) for form in found],
    }
    print(text(record))
    if json_file is not None:
        report.write_json(record, json_file)


def forms(mode: str) -> list[Form]:
    """All three forms of a program."""
    print(f"compiling {mode} ...", file=sys.stderr, flush=True)
    z = PASS.batch * PASS.length * PASS.heads * PASS.depth
    made = 2 * z * (1 if mode == MODES[0] else 2)  # the backward makes them again, for dz
    kernels = figures(PASS, mode, "triton", TARGET, detailed=True).kernels
    pass_us = sum(kernel.work.issue_us for kernel in kernels if kernel.work)
    programs = {form: _compiled(mode, chosen) for form, chosen in FORMS.items()}
    return [
        *(
            Form(mode, form, compiled.bytes_moved, compiled.launches, made, None if FORMS[form] else pass_us)
            for form, compiled in programs.items()
        ),
        _inside(mode, programs[BY_A_KERNEL], z, pass_us / made),
    ]


def _compiled(mode: str, chosen: dict[str, str]) -> Program:
    with use_implementation(**chosen):
        return compile_program(*_program(mode), target=TARGET, kernels="none")


def _inside(mode: str, compiled: Program, z: int, us_for_one: float) -> Form:
    """With the attention kernels and the pass back of `compiled`, the pass by a kernel."""
    attention_kernels = sum(launch.kernel.startswith("chunked_attention") for launch in compiled.traffic.launches)
    forward = next(launch for launch in compiled.traffic.launches if launch.kernel == "normalized_rotary_forward")
    moved = compiled.bytes_moved - forward.bytes - attention_kernels * z * jnp.dtype(PASS.dtype).itemsize
    made = _loaded(mode)
    return Form(mode, INSIDE, moved, compiled.launches - 1, made, made * us_for_one)


def _loaded(mode: str) -> int:
    """Elements of q and k that the attention kernels load, each as often as it is loaded."""
    function, arrays = attention.program(HEADLINE, mode, "triton")
    total = 0
    for call in triton_calls(lower(function, arrays, target=TARGET)):
        assert [operand.shape[3] for operand in call.operands[:2]] == [HEADLINE.depth] * 2
        alike = attention.alike(call)
        assert alike is not None
        for cells, times in alike:
            buffers = check_addresses(call, cells=cells).buffers[:2]  # q and k are the first operands
            total += sum(buffer.bytes_loaded for buffer in buffers) * times // jnp.dtype(HEADLINE.dtype).itemsize
    return total


def _program(mode: str) -> tuple[Callable, dict[str, jax.ShapeDtypeStruct]]:
    given = PASS.arrays()
    arrays = {name: given[name] for name in ("z", "scale", "shift")} | {"v": HEADLINE.arrays()["v"]}

    def attend(arrays: dict) -> jax.Array:
        return normalized_rotary_attention(
            arrays["z"], arrays["v"], arrays["scale"], arrays["shift"], chunk_size=HEADLINE.chunk
        )

    if mode == MODES[0]:
        return attend, arrays

    def forward_backward(arrays: dict):
        o, pullback = jax.vjp(attend, {name: arrays[name] for name in arrays if name != "do"})
        return o, pullback(arrays["do"])[0]

    return forward_backward, arrays | {"do": HEADLINE.arrays()["do"]}


def text(record: dict) -> str:
    """One row for each form of each program."""
    rows = [
        [
            form["mode"],
            form["form"],
            f"{form['bytes_moved'] / 1e9:.3f}",
            str(form["launches"]),
            f"{form['elements'] / 1e9:.3f}",
            "-" if form["issue_us"] is None else f"{form['issue_us']:.0f}",
        ]
        for form in record["forms"]
    ]
    header = ["program", "q and k are made in", "GB moved", "launches", "G elements made", "modelled us"]
    return "\n\n".join([_header(record), report.table(header, rows, left=2)])


def _header(record: dict) -> str:
    return "\n".join(
        [
            ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
            f"{find_target(TARGET).card}, compiled without it: nothing was run or timed; every time is a model's.",
            f"normalized_rotary_attention, {ops.of(HEADLINE).describe(HEADLINE)}.",
            "moved: operands + results of every launch. modelled us: what making the elements takes instructions for.",
        ]
    )
