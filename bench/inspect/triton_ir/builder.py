"""Turns a kernel's IR into a list of Python closures, once; running a grid cell is calling them in order.

Every SSA value has a register, an index into one list. An operation is decoded into a function of NumPy values and then
into a step, a closure that applies the function to registers. Operations on constants are evaluated while building, and
operations whose operands do not change in a loop are moved in front of it.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bench.inspect.triton_ir import access, analysis, collective, control
from bench.inspect.triton_ir.elementwise import elementwise
from bench.inspect.triton_ir.faults import FaultKind, Monitor, Site
from bench.inspect.triton_ir.mlir import Op
from bench.inspect.triton_ir.numerics import unsigned
from bench.inspect.triton_ir.shapes import SHAPES
from bench.inspect.triton_ir.steps import Registers, Scope, make_step

_CHECKED = {"arith.addi": np.add, "arith.subi": np.subtract, "arith.muli": np.multiply, "arith.shli": np.left_shift}
_REGIONS = {"tt.reduce": collective.reduce, "tt.scan": collective.scan}


class Builder:
    """Builds the steps of one kernel, whose blocks share the registers.

    Args:
        monitor: told of faults.
        grid: the launch grid.
        block: the kernel's body.
    """

    def __init__(self, monitor: Monitor, grid: tuple[int, int, int], block: Any):
        self.registers: Registers = []
        self.position: list[Any] = [np.int32(0)] * 3  # program ids of the grid cell that runs
        self.scopes: list[Scope] = []
        self._monitor, self._grid = monitor, grid
        self._slots: dict[Any, int] = {}
        self._depths: dict[Any, int] = {}
        self._live = analysis.live_operations(block)
        self._addresses = analysis.address_values(block)

    def slot(self, value: Any) -> int:
        """The register of an SSA value that is defined already."""
        return self._slots[value]

    def define(self, value: Any, depth: int, slot: int | None = None) -> int:
        """Give an SSA value a register, or a second name to an existing one."""
        if slot is None:
            self.registers.append(None)
            slot = len(self.registers) - 1
        self._slots[value], self._depths[value] = slot, depth
        return slot

    def constant(self, value: Any, content: Any) -> None:
        """An SSA value that never changes."""
        self.registers[self.define(value, 0)] = content

    def scope(self, parent: Scope | None = None, is_open: bool = False) -> Scope:
        """A new block of steps."""
        scope = Scope(parent, is_open)
        self.scopes.append(scope)
        return scope

    def block(self, block: Any, scope: Scope) -> Op:
        """Build the live operations of a block; returns the terminator."""
        terminator = None
        for view in block.operations:
            operation = view.operation
            if operation.name in analysis.TERMINATORS:
                terminator = Op(operation)
            elif operation in self._live:
                self._operation(Op(operation), scope)
        assert terminator is not None
        return terminator

    def _operation(self, op: Op, scope: Scope) -> None:
        if op.name in control.CONTROL:
            scope.operations[op.name] += 1
            control.CONTROL[op.name](op, self, scope)
        elif op.name == "tt.load":
            self._emit(op, access.load(op), scope, scope.depth)
        elif op.name == "tt.store":
            self._emit(op, access.store(op), scope, scope.depth)
        elif op.name == "tt.get_program_id":
            axis, position = op.integer("axis"), self.position
            self._emit(op, lambda: position[axis], scope, 1)
        else:
            self._emit(op, self._pure(op, scope), scope, 0)

    def _pure(self, op: Op, scope: Scope) -> Callable[..., Any]:
        if op.name == "tt.get_num_programs":
            count = np.int32(self._grid[op.integer("axis")])
            return lambda: count
        if op.name == "tt.dot":
            return collective.dot(op)
        if op.name in _REGIONS:
            return _REGIONS[op.name](op, self._region(op, scope))
        if op.name in SHAPES:
            return SHAPES[op.name](op)
        if op.name in _CHECKED and op.results[0] in self._addresses and op.result.dtype == np.int32:
            return self._checked(op)
        function = elementwise(op)
        if function is None:
            raise op.unsupported()
        return function

    def _region(self, op: Op, scope: Scope) -> collective.Combine:
        """The combining function of a reduction or scan, acting on whole tiles."""
        [block] = analysis.blocks_of(op.operation)
        inner = self.scope(scope)
        slots = [self.define(argument, inner.depth) for argument in block.arguments]
        results = [self.slot(value) for value in self.block(block, inner).operands]
        registers = self.registers

        def combine(values: Sequence[Any]) -> tuple[Any, ...]:
            for slot, value in zip(slots, values, strict=True):
                registers[slot] = value
            inner.run(registers)
            return tuple(registers[slot] for slot in results)

        return combine

    def _checked(self, op: Op) -> Callable[..., Any]:
        """int32 arithmetic of an address, which must not lose bits: as signed or, where that counts, as unsigned."""
        function, site, monitor = _CHECKED[op.name], Site(op.operation), self._monitor
        signed = self._addresses[op.results[0]]

        def exact(x: Any, y: Any) -> Any:
            wide = function(x, y, dtype=np.int64)
            narrow = wide.astype(np.int32)
            wrapped = narrow != wide
            if wrapped.any() and not signed:
                wide = function(unsigned(x), unsigned(y), dtype=np.int64)
                wrapped &= (wide < 0) | (wide >= 1 << 32)
            if wrapped.any():
                value = int(np.asarray(wide)[wrapped].flat[0])
                monitor.fault(FaultKind.ADDRESS_OVERFLOW, f"{op.name} gives {value}", site)
            return narrow

        return exact

    def _emit(self, op: Op, function: Callable[..., Any], scope: Scope, least: int) -> None:
        """Put an operation where its operands are known: nowhere (depth 0), in front of loops, or here."""
        inputs = [self._slots[value] for value in op.operands]
        depth = max([least, *(self._depths[value] for value in op.operands)])
        if depth == 0:
            make_step(function, inputs, [self.define(value, 0) for value in op.results])(self.registers)
            return
        while scope.parent is not None and scope.open and scope.depth > depth:
            scope = scope.parent
        scope.operations[op.name] += 1
        if op.name == "tt.dot":
            scope.multiply_adds += math.prod(op.operand(0).shape) * op.operand(1).shape[-1]
        scope.steps.append(make_step(function, inputs, [self.define(value, scope.depth) for value in op.results]))
