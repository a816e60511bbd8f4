"""Cases of `bench gpu` whose programs, clocks and rooflines are made up."""

from collections import namedtuple
from dataclasses import replace

import numpy as np

from bench.gpu import roofline
from bench.gpu.cases import Subject, differences, measure
from bench.gpu.clock import Sample
from bench.modes import Built
from bench.parity import Errors, Line

ROOF = roofline.Roofline(1e9, 1e12, 1e11, "made up")
Memory = namedtuple("Memory", "argument_size_in_bytes output_size_in_bytes temp_size_in_bytes")


def made_up(**milliseconds: float):
    """A clock that says so of the programs of `subject`."""
    return lambda run: Sample(1e3, milliseconds[run()["name"]])


def built(name: str, value=1.0, **changes) -> Built:
    found = {"name": name, "y": np.asarray(value, np.float32)}
    return Built(lambda: found, Memory(600_000, 400_000, 7), 0.5, lambda found: {"y": found["y"]})


def fails(error: Exception):
    def build() -> Built:
        raise error

    return build


def subject(implementations, **changes) -> Subject:
    given = Subject("op: one", "sizes", 8, "forward", implementations, (), 0, "bfloat16", differences)
    return replace(given, **changes)


def case(values=(1.0, 1.0), **changes) -> dict:
    named = {name: lambda n=name, v=value: built(n, v) for name, value in zip(("xla", "triton"), values, strict=True)}
    return measure(subject(named, **changes), made_up(xla=4.0, triton=2.0), 5, ROOF)


def line(**changes) -> Line:
    return replace(Line("y", Errors(1e-7, 1e-6), Errors(1e-7, 1e-6), 1.0, "float32", False), **changes)
