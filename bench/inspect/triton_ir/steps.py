"""Steps, closures that work on a list of registers, and scopes, lists of steps that count what they execute."""

from collections import Counter
from collections.abc import Callable
from typing import Any

Registers = list[Any]
Step = Callable[[Registers], None]


class Scope:
    """The steps of one block. `open`: a step whose operands come from outside may move outside (a loop's body)."""

    def __init__(self, parent: "Scope | None" = None, is_open: bool = False):
        self.parent, self.open = parent, is_open
        self.depth: int = 1 if parent is None else parent.depth + 1  # depth 0: constants
        self.steps: list[Step] = []
        self.operations: Counter[str] = Counter()
        self.multiply_adds = 0
        self.runs = 0

    def run(self, registers: Registers) -> None:
        """Run the steps once."""
        self.runs += 1
        for step in self.steps:
            step(registers)


def make_step(function: Callable[..., Any], inputs: list[int], outputs: list[int]) -> Step:
    """A closure that applies `function` to registers; the common arities are spelt out for speed."""
    if len(outputs) == 1:
        [out] = outputs
        if len(inputs) == 1:
            [a] = inputs

            def unary(r: Registers) -> None:
                r[out] = function(r[a])

            return unary
        if len(inputs) == 2:
            a, b = inputs

            def binary(r: Registers) -> None:
                r[out] = function(r[a], r[b])

            return binary
        if len(inputs) == 3:
            a, b, c = inputs

            def ternary(r: Registers) -> None:
                r[out] = function(r[a], r[b], r[c])

            return ternary

        def single(r: Registers) -> None:
            r[out] = function(*[r[i] for i in inputs])

        return single

    def general(r: Registers) -> None:
        results = function(*[r[i] for i in inputs])
        for out, value in zip(outputs, results or (), strict=True):
            r[out] = value

    return general
