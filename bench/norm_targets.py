"""The targets of timestep_norm at the headline problem, and whether the compiled programs meet them."""

from bench.figures import ProgramFigures
from bench.programs import MODES
from bench.targets import Verdict
from pallas_kernels.timestep_norm.specs import Spec

FORWARD, FORWARD_BACKWARD = MODES
GIGABYTES = {FORWARD: 0.15, FORWARD_BACKWARD: 0.38}
ISSUED = 1.3  # times operands + results


def verdicts(spec: Spec, programs: dict[str, ProgramFigures]) -> list[Verdict]:
    """One verdict per target; `programs` by mode, with the work of their kernels."""
    found = []
    statistics = 4 * spec.batch * spec.groups * spec.length  # one float32 per token and group
    for mode, program in programs.items():
        assert program.bytes_issued is not None
        most = GIGABYTES[mode]
        moved, intermediate = program.bytes_moved / 1e9, program.largest_intermediate / 1e6
        issued = program.bytes_issued / program.bytes_moved
        spills = sum(kernel.spill_bytes for kernel in program.kernels)
        # The largest share over the kernels: each of them is to be limited by memory.
        share = max(k.work.issue_us / k.work.memory_us for k in program.kernels if k.work is not None)
        found += [
            Verdict(f"{mode}: GB moved <= {most:g}", moved, moved <= most),
            Verdict(f"{mode}: issued / moved <= {ISSUED:g}", issued, issued <= ISSUED),
            Verdict(f"{mode}: bytes spilled = 0", spills, spills == 0),
            Verdict(
                f"{mode}: largest intermediate, MB <= {statistics / 1e6:.3f}",
                intermediate,
                program.largest_intermediate <= statistics,
            ),
            Verdict(f"{mode}: modelled issue time / memory time < 1", share, share < 1),
        ]
    return found
