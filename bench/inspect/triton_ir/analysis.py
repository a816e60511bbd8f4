"""What to run and what to watch: operations whose results count, and integers that end up in an address.

Dead operations are left out, as every compiler would: Pallas writes a load that nobody uses before each store.
"""

from typing import Any

TERMINATORS = {"scf.yield", "scf.condition", "tt.return", "tt.reduce.return", "tt.scan.return"}
_BARRIERS = {"gpu.barrier", "ttg.local_barrier", "ttg.barrier"}  # cells run one at a time, each as one thread
_NUMBERS_PASS = {  # operations that pass an integer on: their operands are part of the address too
    "arith.addi",
    "arith.subi",
    "arith.muli",
    "arith.shli",
    "arith.divsi",
    "arith.remsi",
    "arith.divui",
    "arith.remui",
    "arith.maxsi",
    "arith.minsi",
    "arith.maxui",
    "arith.minui",
    "arith.extsi",
    "arith.extui",
    "arith.trunci",
    "arith.select",
    "tt.splat",
    "tt.broadcast",
    "tt.expand_dims",
    "tt.reshape",
    "tt.trans",
    "tt.join",
    "tt.split",
}


def blocks_of(operation: Any) -> list[Any]:
    """The blocks inside an operation."""
    return [block for region in operation.regions for block in region.blocks]


def live_operations(block: Any) -> set[Any]:
    """Operations, in nested blocks too, that have an effect or feed one that has.

    An operation without results that this module does not know is kept, so that it is met and named.
    """
    live: set[Any] = set()
    used: set[Any] = set()

    def visit(inner: Any) -> None:
        for view in reversed(list(inner.operations)):
            operation = view.operation
            if _has_effect(operation) or any(result in used for result in operation.results):
                live.add(operation)
                used.update(operation.operands)
                for nested in blocks_of(operation):
                    visit(nested)

    visit(block)
    return live


def _has_effect(operation: Any) -> bool:
    name = operation.name
    if name in ("scf.for", "scf.while", "scf.if"):
        return any(
            inner.operation.name not in TERMINATORS and _has_effect(inner.operation)
            for block in blocks_of(operation)
            for inner in block.operations
        )
    return name not in _BARRIERS and (not len(operation.results) or name.startswith("tt.atomic"))


def address_values(block: Any) -> dict[Any, bool]:
    """SSA values whose number becomes part of an address, followed backwards through arithmetic, loops and branches.

    True for a value that is read as signed; False for one that only enters addresses zero-extended to 64 bits, which is
    what Pallas does for large arrays: all 32 bits count then.
    """
    found: dict[Any, bool] = {}
    work = [(operation.operands[1], True) for operation in _all(block) if operation.name == "tt.addptr"]
    while work:
        value, signed = work.pop()
        if found.get(value, False) or (value in found and not signed):
            continue
        found[value] = signed
        extended = _definition(value) == "arith.extui"
        work.extend((source, signed and not extended) for source in _sources(value))
    return found


def _all(block: Any) -> list[Any]:
    operations = []
    for view in block.operations:
        operations.append(view.operation)
        for nested in blocks_of(view.operation):
            operations.extend(_all(nested))
    return operations


def _is_block(owner: Any) -> bool:
    return hasattr(owner, "operations")


def _definition(value: Any) -> str:
    """Name of the operation that makes a value; empty for an argument of a block."""
    return "" if _is_block(value.owner) else value.owner.operation.name


def _sources(value: Any) -> list[Any]:
    """The values a number comes from, one step back."""
    owner = value.owner
    if _is_block(owner):  # an argument of a loop's body
        return _incoming(owner.owner.operation, owner, value.arg_number)
    operation = owner.operation
    if operation.name in _NUMBERS_PASS:
        operands = list(operation.operands)
        return operands[1:] if operation.name == "arith.select" else operands
    if operation.name in ("scf.for", "scf.if"):
        return [list(block.operations)[-1].operation.operands[value.result_number] for block in blocks_of(operation)]
    if operation.name == "scf.while":
        before = blocks_of(operation)[0]
        return [list(before.operations)[-1].operation.operands[value.result_number + 1]]
    return []


def _incoming(operation: Any, block: Any, number: int) -> list[Any]:
    blocks = blocks_of(operation)
    last = [list(inner.operations)[-1].operation for inner in blocks]
    if operation.name == "scf.for":
        if number == 0:
            return [operation.operands[0]]
        return [operation.operands[number + 2], last[0].operands[number - 1]]
    if operation.name == "scf.while":
        if block == blocks[0]:
            return [operation.operands[number], last[1].operands[number]]
        return [last[0].operands[number + 1]]
    return []
