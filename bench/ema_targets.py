"""The targets of complex_ema at the headline problem, plain and packed, and whether the compiled programs meet them."""

from bench.figures import KernelFigures, ProgramFigures
from bench.programs import MODES
from bench.targets import Verdict
from pallas_kernels.complex_ema.launch import ENDS, FORWARD
from pallas_kernels.complex_ema.specs import Spec

ONE_WAY, BOTH_WAYS = MODES
GIGABYTES = {ONE_WAY: 0.27, BOTH_WAYS: 0.9}
PACKED_GIGABYTES, TEMPORARY_GIGABYTES = 1.0, 0.3
SASS = {FORWARD: 95, ENDS: 60}  # per element of x, in the loop over tiles
UNFUSED = 0.05  # FMUL and FADD for each FFMA there
ISSUED = 1.3  # times operands + results


def plain(spec: Spec, programs: dict[str, ProgramFigures]) -> list[Verdict]:
    """One verdict per target; `programs` by mode, with the work of their kernels."""
    found = []
    for mode, most in GIGABYTES.items():
        found += [_at_most(f"{mode}: GB moved", programs[mode].bytes_moved / 1e9, most), *_common(mode, programs[mode])]
    kernels = {kernel.name: kernel for kernel in programs[ONE_WAY].kernels}
    for name, most in SASS.items():
        found += _loop(kernels[name], most)
    both = programs[BOTH_WAYS]
    return [*found, _at_most(f"{BOTH_WAYS}: GB of temporary memory", both.temporary_bytes / 1e9, TEMPORARY_GIGABYTES)]


def packed(spec: Spec, programs: dict[str, ProgramFigures]) -> list[Verdict]:
    """The same for packed documents."""
    both = programs[BOTH_WAYS]
    return [
        _at_most(f"{BOTH_WAYS}: GB moved", both.bytes_moved / 1e9, PACKED_GIGABYTES),
        _at_most(f"{BOTH_WAYS}: GB of temporary memory", both.temporary_bytes / 1e9, TEMPORARY_GIGABYTES),
        *_common(BOTH_WAYS, both),
    ]


def _loop(kernel: KernelFigures, most: float) -> list[Verdict]:
    work = kernel.work
    assert work is not None
    unfused = (work.products + work.sums) / max(1, work.fused)
    return [
        _at_most(f"{ONE_WAY}: SASS per element, {kernel.name}", work.per_element, most),
        _at_most(f"{ONE_WAY}: (FMUL + FADD) / FFMA, {kernel.name}", unfused, UNFUSED),
    ]


def _common(mode: str, program: ProgramFigures) -> list[Verdict]:
    assert program.bytes_issued is not None
    assert program.bytes_cached is not None
    uncached = (program.bytes_issued - program.bytes_cached) / program.bytes_moved
    spills = sum(kernel.spill_bytes + kernel.stack_bytes for kernel in program.kernels)
    return [
        _at_most(f"{mode}: issued / moved", program.bytes_issued / program.bytes_moved, ISSUED),
        _at_most(f"{mode}: issued but for loads from a cache / moved", uncached, ISSUED),
        Verdict(f"{mode}: bytes spilled or on the stack = 0", spills, spills == 0),
    ]


def _at_most(name: str, figure: float, most: float) -> Verdict:
    return Verdict(f"{name} <= {most:g}", figure, figure <= most)
