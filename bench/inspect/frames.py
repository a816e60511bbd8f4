"""Which lines of Python an instruction of an optimised program came from.

    FileLocations                                     StackFrames
    3 {file_name_id=2 function_name_id=1 line=38 ..}  7 {file_location_id=3 parent_frame_id=6}

are tables at the top of the HLO text, and `stack_frame_id=7` in an instruction's metadata points into them. A fusion
without metadata has that of its root, and a root that returns several arrays that of the first of them that has any.
"""

import re
from dataclasses import dataclass

from bench.inspect.hlo_text import Instruction, Module, parse, root


@dataclass(frozen=True)
class Frame:
    """A line of Python and the function it is in."""

    file: str
    line: int
    function: str


Stack = tuple[Frame, ...]  # innermost first


def stacks(text: str) -> dict[str, Stack]:
    """By name of the instruction; empty where the compiler made one up."""
    module, table = parse(text), _table(text)
    found = {}
    for computation in module.computations.values():
        for instruction in computation.values():
            number = _frame(instruction, module)
            found[instruction.name] = table[number] if number else ()
    return found


def _frame(instruction: Instruction, module: Module) -> int:
    if own := instruction.attribute("stack_frame_id"):
        return int(own)
    if instruction.opcode != "fusion":
        return 0
    body = module.computations[module.called(instruction, "calls")]
    returned = root(body)
    leaves = [returned, *(body[name] for name in returned.operands)]
    numbers = [leaf.attribute("stack_frame_id") for leaf in leaves]
    return next((int(number) for number in numbers if number), 0)


def _table(text: str) -> dict[int, Stack]:
    files, functions = (
        {number: entry.strip('"') for number, entry in _section(text, name).items()}
        for name in ("FileNames", "FunctionNames")
    )
    locations = {
        number: Frame(files[_id(entry, "file_name_id")], _id(entry, "line"), functions[_id(entry, "function_name_id")])
        for number, entry in _section(text, "FileLocations").items()
    }
    frames = _section(text, "StackFrames")
    # Without a parent XLA writes 1 for it, and one more than its number for every other.
    parents = {number: _id(entry, "parent_frame_id") - 1 for number, entry in frames.items()}
    found: dict[int, Stack] = {}
    for number, entry in frames.items():  # parents come first
        found[number] = (locations[_id(entry, "file_location_id")], *found.get(parents[number], ()))
    return found


def _section(text: str, name: str) -> dict[int, str]:
    section = re.search(rf"^{name}\n((?:\d+ .*\n)*)", text, re.MULTILINE)
    lines = section[1].splitlines() if section else []
    return {int(number): entry for number, entry in (line.split(" ", 1) for line in lines)}


def _id(entry: str, name: str) -> int:
    found = re.search(rf"\b{name}=(\d+)", entry)
    if found is None:
        raise ValueError(f"no {name} in {entry!r} of a table of source lines")
    return int(found[1])
