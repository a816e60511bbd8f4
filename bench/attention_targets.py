"""The targets of chunked_attention at the headline problem, and whether the compiled programs meet them."""

from bench.figures import ProgramFigures
from bench.ops import attention
from bench.programs import MODES
from bench.targets import Verdict
from pallas_kernels.chunked_attention.launch import FORWARD
from pallas_kernels.chunked_attention.specs import Spec

ONE_WAY, BOTH_WAYS = MODES
TEMPORARY_GIGABYTES = {ONE_WAY: 0.02, BOTH_WAYS: 0.15}
# Multiply-adds over those that the results need, for value tiles of 256.
FORWARD_RATIO, BACKWARD_RATIO = 1.9, 2.0


def verdicts(spec: Spec, programs: dict[str, ProgramFigures]) -> list[Verdict]:
    """One verdict per target; `programs` by mode, with the products of their kernels."""
    found = []
    gradient = 4 * spec.batch * spec.heads * spec.length * spec.depth  # a float32 for each element of q: its gradient
    for mode, program in programs.items():
        temporary, most = program.temporary_bytes / 1e9, TEMPORARY_GIGABYTES[mode]
        largest = program.largest_intermediate
        spills = sum(kernel.spill_bytes + kernel.stack_bytes for kernel in program.kernels)
        plain = sum(kernel.tensor_instructions == 0 for kernel in program.kernels)
        found += [
            Verdict(f"{mode}: GB of temporary memory <= {most:g}", temporary, temporary <= most),
            Verdict(f"{mode}: largest intermediate, MB <= {gradient / 1e6:.3f}", largest / 1e6, largest <= gradient),
            Verdict(f"{mode}: bytes spilled or on the stack = 0", spills, spills == 0),
            Verdict(f"{mode}: kernels without tensor cores = 0", plain, plain == 0),
        ]
    forward, backward = _ratios(spec, programs)
    return [
        *found,
        Verdict(f"forward: multiply-adds / least <= {FORWARD_RATIO:g}", forward, forward <= FORWARD_RATIO),
        Verdict(f"backward: multiply-adds / least <= {BACKWARD_RATIO:g}", backward, backward <= BACKWARD_RATIO),
    ]


def _ratios(spec: Spec, programs: dict[str, ProgramFigures]) -> tuple[float, float]:
    one_way, both_ways = (attention.least_multiply_adds(spec, mode) for mode in MODES)
    done = {FORWARD: 0, "others": 0}
    for kernel in programs[BOTH_WAYS].kernels:
        assert kernel.products is not None
        done[FORWARD if kernel.name == FORWARD else "others"] += kernel.products.multiply_adds
    return done[FORWARD] / one_way, done["others"] / (both_ways - one_way)
