"""What ptxas and nvdisasm say about a kernel, read into plain values.

ptxas assembles PTX and reports registers, spills, stack and static shared memory of each kernel. nvdisasm prints the
machine code (SASS) as JSON: an opcode, operands and an optional predicate per instruction, 16 bytes apart.
"""

import json
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bench.inspect import tools
from bench.inspect.targets import Target

_INSTRUCTION_BYTES = 16


@dataclass(frozen=True)
class Resources:
    """What ptxas allocated for one kernel: registers per thread, bytes per thread, shared bytes per block."""

    registers: int
    spill_store_bytes: int
    spill_load_bytes: int
    stack_bytes: int
    shared_bytes: int


@dataclass(frozen=True)
class Instruction:
    """One SASS instruction. `predicate` is "" or like "@!P0"; `address` is in bytes from the kernel's start."""

    address: int
    predicate: str
    opcode: str
    operands: str

    @property
    def base(self) -> str:
        """The opcode without its modifiers: FFMA for FFMA.FTZ."""
        return self.opcode.split(".")[0]

    def __str__(self) -> str:
        return f"{self.address:#06x}  {self.predicate:>5} {self.opcode} {self.operands}".rstrip()


def assemble(ptx: str, target: Target, cubin: Path) -> str:
    """Assemble PTX into the file `cubin`; returns what ptxas reports.

    Raises:
        RuntimeError: ptxas refuses, with what it printed.
    """
    with tempfile.TemporaryDirectory(prefix="inspect_") as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        report = _run("ptxas", "-v", "-arch", target.assembler_arch, str(source), "-o", str(cubin))[1]
    # How long it took is not about the kernel, and would make no two compilations the same.
    return "\n".join(line for line in report.splitlines() if "Compile time" not in line)


def disassemble(cubin: Path) -> str:
    """The machine code in a cubin, as nvdisasm's JSON."""
    return _run("nvdisasm", "-c", "-json", str(cubin))[0]


def _run(tool: str, *arguments: str) -> tuple[str, str]:
    done = subprocess.run([str(tools.find(tool).path), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{tool} failed with exit status {done.returncode}: {done.stderr.strip()}")
    return done.stdout, done.stderr


def parse_resources(report: str) -> dict[str, Resources]:
    """Resources by kernel name from what `ptxas -v` printed.

    Raises:
        ValueError: a kernel without a complete entry.
    """
    found = {}
    # One section per function: the kernel's name first, its figures up to the next name.
    for section in re.split(r"Compiling entry function '", report)[1:]:
        name = section.split("'")[0]
        # Figures of a called device function come first, under its own "Function properties for".
        own = section.split(f"Function properties for {name}\n")[-1]
        frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", own)
        registers = re.search(r"Used (\d+) registers", own)
        if frame is None or registers is None:
            raise ValueError(f"ptxas reported no registers or no stack frame for {name!r}: {section!r}")
        shared = re.search(r"(\d+) bytes smem", own)
        found[name] = Resources(
            registers=int(registers[1]),
            stack_bytes=int(frame[1]),
            spill_store_bytes=int(frame[2]),
            spill_load_bytes=int(frame[3]),
            shared_bytes=int(shared[1]) if shared else 0,
        )
    return found


def parse_disassembly(text: str) -> dict[str, tuple[Instruction, ...]]:
    """Instructions by kernel name from nvdisasm's JSON, without the padding after the last one.

    Raises:
        ValueError: not the JSON that the pinned nvdisasm prints.
    """
    try:
        functions = json.loads(text)[1]
        return {function["function-name"]: _instructions(function["sass-instructions"]) for function in functions}
    except (IndexError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"expected nvdisasm's JSON, got {text[:80]!r}") from error


def _instructions(entries: Iterable[dict[str, str]]) -> tuple[Instruction, ...]:
    found = []
    for position, entry in enumerate(entries):
        # nvdisasm also calls the register operand of P2R and R2P a predicate.
        predicate = entry.get("predicate", "")
        found.append(
            Instruction(
                address=position * _INSTRUCTION_BYTES,
                predicate=predicate if predicate.startswith("@") else "",
                opcode=entry["opcode"],
                operands=entry.get("operands", ""),
            )
        )
    while found and (found[-1].base == "NOP" or _branches_to_itself(found[-1])):
        found.pop()
    return tuple(found)


def _branches_to_itself(instruction: Instruction) -> bool:
    return instruction.base == "BRA" and instruction.operands == f"{instruction.address:#x}"


def histogram(instructions: Iterable[Instruction]) -> Counter[str]:
    """How often each base opcode occurs."""
    return Counter(instruction.base for instruction in instructions)
