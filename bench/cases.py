"""One case = one length and mode: every program compiled, checked against the oracle and timed."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bench.accuracy import TENSORS, Error, error, oracle, out_of_bound
from bench.measure import CpuTime, interleaved, median_time
from bench.programs import MODES, PACKED, Inputs, compile_programs


@dataclass(frozen=True)
class Measurement:
    """What was measured of one program; errors are per tensor: y, then the gradient of each argument."""

    samples: list[CpuTime]
    median: CpuTime
    temp_bytes: int
    errors: dict[str, Error]


@dataclass(frozen=True)
class Case:
    """All programs of one length and mode; `parity_failures` names what broke the error bound, as "program tensor"."""

    length: int
    mode: str
    programs: dict[str, Measurement]
    parity_failures: list[str]


def measure_cases(inputs: Inputs, rounds: int) -> list[Case]:
    """Forward and forward+backward at the length of `inputs`."""
    *arrays, segment_ids = inputs
    truths = {False: oracle(*arrays), True: oracle(*arrays, segment_ids=segment_ids)}
    return [_measure(inputs, mode, rounds, truths) for mode in MODES]


def _measure(inputs: Inputs, mode: str, rounds: int, truths: Mapping[bool, Mapping[str, np.ndarray]]) -> Case:
    programs = compile_programs(inputs, mode)
    errors = {
        name: {
            tensor: error(result, truths[name == PACKED][tensor])
            for tensor, result in zip(TENSORS, program(), strict=False)  # a forward has y alone
        }
        for name, program in programs.items()
    }
    failures = [
        f"{name} {tensor}" for name in ("ours", PACKED) for tensor in out_of_bound(errors[name], errors["scan"])
    ]
    measurements = {
        name: Measurement(samples, median_time(samples), programs[name].temp_bytes(), errors[name])
        for name, samples in interleaved(programs, rounds).items()
    }
    return Case(inputs.x.shape[1], mode, measurements, failures)
