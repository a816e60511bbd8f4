"""Compile in a process of its own.

Some programs make the compiler abort instead of raising (Triton: fp8 dots for sm_80; Mosaic: nearly everything before
sm_90). In a child process that is an error message. The function travels by name, so it must be importable.
"""

import importlib
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from bench.inspect.cache import read, write
from bench.inspect.compile import Kernels, Option, aval, compile_program
from bench.inspect.program import Program
from bench.inspect.targets import Target, find_target

# How LLVM, Abseil, the C library and Python begin the line that says what went wrong.
_ERROR = re.compile(
    r"LLVM ERROR|LLVM Fatal Error|Check failed|Assertion|Fatal Python error|^[\w.]*(Error|Exception|Unavailable)\b"
)
_LINES = 5


class CompilerFailed(RuntimeError):
    """The compiling process raised, aborted or took too long; the message holds the error that it printed."""


def compile_in_subprocess(
    function: Callable[..., Any],
    *avals: Any,
    target: str | Target = "sm_90",
    options: Mapping[str, Option] | None = None,
    kernels: Kernels = "all",
    timeout: float = 600.0,
) -> Program:
    """`compile_program` in a child process, for programs that may abort the compiler.

    Settings of this process (`use_implementation`, jax configuration) do not reach the child.

    Args:
        function: as for `compile_program`, and found under its name in an importable module.
        avals, target, options, kernels: as for `compile_program`.
        timeout: seconds.

    Raises:
        CompilerFailed: no program came back.
        ValueError: unknown target, or a function that cannot be imported by name.
    """
    gpu = find_target(target)
    name = (function.__module__, function.__qualname__)
    if name[0] == "__main__" or _find(*name) is not function:
        raise ValueError(f"the function must be importable by name; {name[0]}.{name[1]} is not it.")
    structs = jax.tree.map(aval, avals)
    with tempfile.TemporaryDirectory(prefix="inspect_") as folder:
        request, result = Path(folder) / "request", Path(folder) / "result"
        request.write_bytes(pickle.dumps((name, structs, gpu, dict(options or {}), kernels)))
        command = [sys.executable, "-X", "faulthandler", "-m", "bench.inspect.isolated", str(request), str(result)]
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": paths}
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired:
            raise CompilerFailed(f"compiling {name[1]} for {gpu.name} took more than {timeout:g} s") from None
        if done.returncode:
            how = _ending(done.returncode)
            raise CompilerFailed(f"compiling {name[1]} for {gpu.name} {how}:\n{_message(done.stderr)}")
        return Program(gpu, read(result))


def _ending(status: int) -> str:
    return f"ended by {signal.Signals(-status).name}" if status < 0 else f"failed with exit status {status}"


def _message(printed: str) -> str:
    """The error among what the child printed: a few lines from where it says so, stack traces of C++ left out."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    errors = [number for number, line in enumerate(lines) if _ERROR.search(line)]
    start = errors[0] if errors else max(0, len(lines) - _LINES)
    return "\n".join(lines[start : start + _LINES])


def _find(module: str, qualified: str) -> Any:
    found = importlib.import_module(module)
    for part in qualified.split("."):
        found = getattr(found, part, None)
    return found


def _child(request: Path, result: Path) -> None:
    name, structs, target, options, kernels = pickle.loads(request.read_bytes())
    program = compile_program(_find(*name), *structs, target=target, options=options, kernels=kernels)
    write(result, program.artefacts)


if __name__ == "__main__":
    _child(Path(sys.argv[1]), Path(sys.argv[2]))
