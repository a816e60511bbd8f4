"""`scf.for`, `scf.while` and `scf.if` as steps that run other blocks."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from bench.inspect.triton_ir.analysis import blocks_of
from bench.inspect.triton_ir.mlir import Op, tile_of
from bench.inspect.triton_ir.steps import Registers, Scope

if TYPE_CHECKING:
    from bench.inspect.triton_ir.builder import Builder


def _copy(sources: Sequence[int], targets: Sequence[int]) -> Callable[[Registers], None]:
    """A simultaneous assignment of registers."""
    pairs = list(zip(sources, targets, strict=True))

    def copy(registers: Registers) -> None:
        values = [registers[source] for source, _ in pairs]
        for (_, target), value in zip(pairs, values, strict=True):
            registers[target] = value

    return copy


def for_loop(op: Op, builder: "Builder", scope: Scope) -> None:
    """`scf.for`: the results live in the registers of the loop's carried values."""
    lower, upper, step, *initial = (builder.slot(value) for value in op.operands)
    [block] = blocks_of(op.operation)
    body = builder.scope(scope, is_open=True)
    number, *carried = (builder.define(argument, body.depth) for argument in block.arguments)
    integer = tile_of(block.arguments[0]).dtype.type
    start = _copy(initial, carried)
    advance = _copy([builder.slot(value) for value in builder.block(block, body).operands], carried)
    for value, slot in zip(op.results, carried, strict=True):
        builder.define(value, scope.depth, slot)

    def run(registers: Registers) -> None:
        start(registers)
        for i in range(int(registers[lower]), int(registers[upper]), int(registers[step])):
            registers[number] = integer(i)
            body.run(registers)
            advance(registers)

    scope.steps.append(run)


def while_loop(op: Op, builder: "Builder", scope: Scope) -> None:
    """`scf.while`: the first block decides and passes values on, the second computes the next round's."""
    first, second = blocks_of(op.operation)
    initial = [builder.slot(value) for value in op.operands]
    before = builder.scope(scope, is_open=True)
    inputs = [builder.define(argument, before.depth) for argument in first.arguments]
    condition, *passed = (builder.slot(value) for value in builder.block(first, before).operands)
    after = builder.scope(scope, is_open=True)
    received = [builder.define(argument, after.depth) for argument in second.arguments]
    start, hand_over = _copy(initial, inputs), _copy(passed, received)
    again = _copy([builder.slot(value) for value in builder.block(second, after).operands], inputs)
    for value, slot in zip(op.results, received, strict=True):
        builder.define(value, scope.depth, slot)

    def run(registers: Registers) -> None:
        start(registers)
        while True:
            before.run(registers)
            hand_over(registers)
            if not registers[condition]:
                return
            after.run(registers)
            again(registers)

    scope.steps.append(run)


def branch(op: Op, builder: "Builder", scope: Scope) -> None:
    """`scf.if`, with or without an else and results."""
    condition = builder.slot(op.operands[0])
    results = [builder.define(value, scope.depth) for value in op.results]
    ways = []
    for block in blocks_of(op.operation):
        inner = builder.scope(scope)
        values = [builder.slot(value) for value in builder.block(block, inner).operands]
        ways.append((inner, _copy(values, results)))

    def run(registers: Registers) -> None:
        way = 0 if registers[condition] else 1
        if way < len(ways):
            inner, assign = ways[way]
            inner.run(registers)
            assign(registers)

    scope.steps.append(run)


CONTROL: "dict[str, Callable[[Op, Builder, Scope], None]]" = {
    "scf.for": for_loop,
    "scf.while": while_loop,
    "scf.if": branch,
}
