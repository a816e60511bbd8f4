"""One program in several implementations, side by side: compiled, compared, timed.

The first implementation is the reference. The others have to agree with it in every value; what does not agree, or does
not compile or run, is named and has no ratio.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from statistics import median

import jax
import numpy as np

from bench import parity, tolerance
from bench.gpu.checks import said
from bench.gpu.clock import Clock, comparable, interleaved
from bench.gpu.roofline import Roofline
from bench.modes import Built


@dataclass(frozen=True)
class Difference:
    """Of one value from the reference's, relative to its RMS."""

    name: str
    relative_rms: float
    max_abs: float
    within: bool


Agree = Callable[[dict, dict], tuple[Difference, ...]]


@dataclass(frozen=True)
class Subject:
    """A program to be measured.

    Attributes:
        title: of the problem; with `mode` it identifies the subject in other records.
        problem: its sizes and options in words.
        length: tokens of a sequence.
        implementations: each by a function that compiles it; the first one is the reference.
        unproven: those that failed against the float64 oracle in this run, and have no ratio for that.
        operations: of matrix products that the results need; 0 where there is none.
        dtype: of those products.
        agree: do the values of an implementation agree with those of the reference? Takes both by name.
    """

    title: str
    problem: str
    length: int
    mode: str
    implementations: Mapping[str, Callable[[], Built]]
    unproven: tuple[str, ...]
    operations: int
    dtype: str
    agree: Agree


def differences(values: dict, expected: dict, dtype: str | None = None) -> tuple[Difference, ...]:
    """Between two implementations of a problem that is too large for the float64 oracle.

    Args:
        values, expected: arrays by name.
        dtype: what they are computed in, where that is not the dtype that they have.
    """
    if values.keys() != expected.keys():
        raise ValueError(f"differences: values {sorted(values)}, expected {sorted(expected)}.")
    found = []
    for name, value in expected.items():
        computed_in = dtype or np.asarray(value).dtype.name
        errors = parity.errors(np.asarray(values[name]), _wide(np.asarray(value)))
        found.append(Difference(name, errors.relative_rms, errors.max_abs, tolerance.agree(errors, computed_in)))
    return tuple(found)


def measure(subject: Subject, clock: Clock, rounds: int, roofline: Roofline) -> dict:
    """Everything about a subject as plain data."""
    built: dict[str, Built] = {}
    failures: dict[str, str] = {}
    agreement: dict[str, tuple[Difference, ...]] = {}
    expected: dict = {}  # of the reference; where that fails nothing is compared
    for name, build in subject.implementations.items():
        try:
            one = build()
            values = jax.tree.map(np.asarray, one.values(one.run()))
        except Exception as error:  # compilers and drivers raise what they like
            failures[name] = said(error)
            continue
        expected = expected or values
        built[name], agreement[name] = one, subject.agree(values, expected)
    samples = interleaved({name: one.run for name, one in built.items()}, rounds, clock)
    kind, times = comparable(samples)
    figures = {name: _figures(subject, one, times[name], roofline) for name, one in built.items()}
    reference = next(iter(subject.implementations))
    for name, one in figures.items():
        within = all(difference.within for difference in agreement[name])
        passed = within and name not in subject.unproven and reference in figures
        one["wall_ms"] = median(sample.wall_ms for sample in samples[name])
        one["difference"] = asdict(max(agreement[name], key=lambda one: (not one.within, one.relative_rms)))
        one["speedup"] = figures[reference]["ms"] / one["ms"] if passed else None
    return {
        "title": subject.title,
        "problem": subject.problem,
        "length": subject.length,
        "mode": subject.mode,
        "operations": subject.operations,
        "time": kind,
        "implementations": figures,
        "failures": failures,
    }


def _figures(subject: Subject, built: Built, times: list[float], roofline: Roofline) -> dict:
    low, ms, high = (float(value) for value in np.quantile(times, (0.25, 0.5, 0.75)))
    moved = built.memory.argument_size_in_bytes + built.memory.output_size_in_bytes
    return {
        "samples_ms": times,
        "ms": ms,
        "quartiles_ms": [low, high],
        "bytes": moved,
        "bytes_per_second": moved / ms * 1e3,
        "operations_per_second": subject.operations / ms * 1e3,
        "of_roofline": roofline.bound_ms(moved, subject.operations, subject.dtype) / ms,
        "temporary_bytes": built.memory.temp_size_in_bytes,
        "compile_seconds": built.compile_seconds,
    }


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)
