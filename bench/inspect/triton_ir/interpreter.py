"""Run a lowered kernel on the CPU: every grid cell, in shuffled order, on outputs that start as poison.

What this checks: values, addresses, initialisation, and that no two grid cells touch the same element unless both only
read. What it cannot check: races between the threads of one program, memory ordering, the compiler below Triton IR.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from bench.inspect.lowering import TritonCall
from bench.inspect.triton_ir.builder import Builder
from bench.inspect.triton_ir.faults import Monitor
from bench.inspect.triton_ir.memory import Buffer, Pointer
from bench.inspect.triton_ir.mlir import kernel_block, parse
from bench.inspect.triton_ir.report import Report
from bench.inspect.triton_ir.steps import Scope

Order = str | Sequence[int]


def run_kernel(
    call: TritonCall,
    inputs: Sequence[Any],
    *,
    order: Order = "shuffled",
    seed: int = 0,
    collect: bool = False,
) -> tuple[list[np.ndarray], Report]:
    """Execute a kernel on arrays.

    Args:
        inputs: one array per operand of `call`.
        order: "shuffled" (by `seed`), "sequential", or linear numbers (x fastest) of all grid cells in some order.
        collect: keep faults in the report, where the default is to raise the first.

    Returns:
        The results, and the report.

    Raises:
        KernelFault: see `FaultKind`.
        UnsupportedOperation: the kernel uses an operation the interpreter does not know.
        ValueError: inputs that do not fit the call, or an order that does not run every cell once.
    """
    _check_inputs(call, inputs)
    cells = _order(call, order, seed)
    monitor = Monitor(call.name, collect)
    buffers = _buffers(call, monitor, [np.asarray(value) for value in inputs])
    scopes = _run(call, monitor, buffers, cells)
    monitor.position = None
    results = buffers[len(call.operands) :]
    for buffer in results:
        buffer.check_written()
    return [buffer.values for buffer in results], _report(call, monitor, buffers, scopes, len(cells))


def check_addresses(
    call: TritonCall,
    *,
    inputs: dict[int, Any] | None = None,
    cells: Sequence[int] | None = None,
    random_cells: int = 2,
    seed: int = 0,
    collect: bool = False,
) -> Report:
    """Run some grid cells without memory: every address is checked against its array, of any size, nothing else is.

    Args:
        inputs: arrays by operand number for operands whose values steer addresses or loops; loads from all others give
            zeros.
        cells: linear numbers (x fastest) of the cells to run; the default is the first, the last and `random_cells`.

    Raises:
        KernelFault: a load or store outside its array, or int32 address arithmetic that overflows.
        UnsupportedOperation: the kernel uses an operation the interpreter does not know.
    """
    total = _cell_count(call)
    if cells is None:
        drawn = np.random.default_rng(seed).integers(0, total, random_cells)
        cells = sorted({0, total - 1, *map(int, drawn)})
    given = inputs or {}
    monitor = Monitor(call.name, collect)
    values = [np.asarray(given[i]) if i in given else None for i in range(len(call.operands))]
    buffers = _buffers(call, monitor, values, virtual=True)
    scopes = _run(call, monitor, buffers, cells)
    return _report(call, monitor, buffers, scopes, len(cells))


def _cell_count(call: TritonCall) -> int:
    return int(np.prod(call.grid, dtype=object))


def _check_inputs(call: TritonCall, inputs: Sequence[Any]) -> None:
    given = [jax.ShapeDtypeStruct(np.shape(value), np.asarray(value).dtype) for value in inputs]
    if [(s.shape, s.dtype) for s in given] != [(s.shape, s.dtype) for s in call.operands]:
        raise ValueError(f"{call.name}: expected operands {list(call.operands)}, got {given}.")


def _order(call: TritonCall, order: Order, seed: int) -> list[int]:
    total = _cell_count(call)
    if isinstance(order, str):
        if order == "shuffled":
            return np.random.default_rng(seed).permutation(total).tolist()
        if order == "sequential":
            return list(range(total))
        raise ValueError(f'{call.name}: order must be "shuffled", "sequential" or cell numbers, got {order!r}.')
    if sorted(order) != list(range(total)):
        raise ValueError(f"{call.name}: an order must name each of the {total} grid cells once.")
    return list(order)


def _buffers(
    call: TritonCall, monitor: Monitor, inputs: Sequence[np.ndarray | None], virtual: bool = False
) -> list[Buffer]:
    """One buffer per kernel argument, operands then results; a result that aliases an operand is that operand's."""
    shared = set(call.aliases.values())
    buffers = [
        Buffer(
            monitor,
            f"operand {i}",
            spec.shape,
            np.dtype(spec.dtype),
            values=inputs[i],
            writable=i in shared,
            virtual=virtual and inputs[i] is None,
        )
        for i, spec in enumerate(call.operands)
    ]
    for i, spec in enumerate(call.results):
        if i in call.aliases:
            buffers.append(buffers[call.aliases[i]])
        else:
            name = f"result {i}"
            buffers.append(Buffer(monitor, name, spec.shape, np.dtype(spec.dtype), writable=True, virtual=virtual))
    return buffers


def _run(call: TritonCall, monitor: Monitor, buffers: Sequence[Buffer], cells: Sequence[int]) -> Sequence[Scope]:
    module = parse(call.bytecode)  # held: its blocks do not keep it alive
    block = kernel_block(module)
    builder = Builder(monitor, call.grid, block)
    for argument, buffer in zip(block.arguments, buffers, strict=True):
        builder.constant(argument, Pointer(buffer, np.int64(0)))
    with np.errstate(all="ignore"):  # infinities and NaN are values here, as on the GPU
        top = builder.scope()
        builder.block(block, top)
        for cell in cells:
            _enter(cell, call.grid, monitor, builder)
            top.run(builder.registers)
    return builder.scopes


def _enter(cell: int, grid: tuple[int, int, int], monitor: Monitor, builder: Builder) -> None:
    y, x = divmod(cell, grid[0])
    z, y = divmod(y, grid[1])
    monitor.cell, monitor.position = cell, (x, y, z)
    builder.position[:] = [np.int32(x), np.int32(y), np.int32(z)]


def _report(
    call: TritonCall, monitor: Monitor, buffers: Sequence[Buffer], scopes: Sequence[Scope], cells: int
) -> Report:
    distinct = list(dict.fromkeys(buffers))
    operations: Counter[str] = Counter()
    for scope in scopes:
        for name, count in scope.operations.items():
            operations[name] += count * scope.runs
    return Report(
        name=call.name,
        grid=call.grid,
        cells=cells,
        faults=tuple(monitor.faults),
        buffers=tuple(buffer.use for buffer in distinct),
        operations=dict(operations),
        multiply_adds=sum(scope.multiply_adds * scope.runs for scope in scopes),
    )
