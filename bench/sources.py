"""Bytes of a compiled program by the source lines of this project that they come from.

A launch is named by the innermost line of the project on its stack and, in front of it, by the line of the model's
method that led there: a matmul stands in one line of `ops.py`, which many layers call. A Pallas kernel has its name.
"""

import re
from collections import defaultdict
from dataclasses import dataclass

from bench.inspect import Launch, Program
from bench.inspect.frames import Frame, Stack, stacks

ELSEWHERE = "XLA, no line"
_OURS = re.compile(r".*/(?:megalodon_jax|pallas_kernels|reference)/(.+)$")
_METHOD = re.compile(r"[A-Z]\w*\.(?:__call__|[a-z]\w*)$")  # not a private one


@dataclass
class Line:
    """What the launches of a line do in one run; bytes of the backward pass are counted apart too."""

    bytes: int = 0
    backward: int = 0
    launches: int = 0


def by_line(program: Program) -> dict[str, Line]:
    """Largest first; needs a program that was compiled with `lines=True`."""
    found: defaultdict[str, Line] = defaultdict(Line)
    known = stacks(program.hlo)
    for launch in program.traffic.launches:
        line = found[_place(launch, known[launch.name])]
        line.bytes += launch.bytes
        line.backward += launch.bytes if "transpose(" in launch.source else 0
        line.launches += launch.trips
    return dict(sorted(found.items(), key=lambda item: -item[1].bytes))


def _place(launch: Launch, stack: Stack) -> str:
    if launch.kind == "pallas":
        return launch.kernel
    ours = [frame for frame in stack if _OURS.match(frame.file)]
    if not ours:
        return ELSEWHERE
    methods = (f for f in ours if "/megalodon_jax/" in f.file and _METHOD.match(f.function))
    caller = next(methods, ours[0])
    return _text(caller) if caller is ours[0] else f"{_text(caller)} > {_text(ours[0])}"


def _text(frame: Frame) -> str:
    return _OURS.sub(r"\1", frame.file) + f":{frame.line}"
