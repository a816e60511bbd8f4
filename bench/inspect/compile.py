"""Compile a jitted function for a GPU that is not there.

XLA's CUDA compiler needs a description of the device, not the device. The function is traced and lowered with
`pallas_kernels.compile_for` and compiled by XLA, which writes down its launches and the PTX of each kernel; each kernel
is then assembled and disassembled with the tools of `tools`. The CUDA plugin is registered with jax for this but,
without a GPU, never becomes a backend: `jax.devices()` stays what it was, and CPU work goes on in the same process.

What such a program says about time is limited: matmuls left to XLA are not tuned without a GPU (`Kernel.is_gemm`).
"""

import importlib
import os
import re
import resource
import tempfile
from collections.abc import Callable, Iterable, Mapping
from functools import cache as remembered
from pathlib import Path
from typing import Any, Literal

import jax
from jax.experimental import topologies

from bench.inspect import cache, hlo, sass, tools
from bench.inspect.artefacts import Artefacts, geometries
from bench.inspect.program import Program
from bench.inspect.targets import Target, find_target
from pallas_kernels import compile_for

Option = str | bool | int | float
Kernels = Literal["all", "pallas", "none"]

# There is no GPU to tune on. Optimised code even where XLA_FLAGS asks for less for the CPU: the flag is one for both.
_OPTIONS: dict[str, str | bool] = {"xla_gpu_autotune_level": "0", "xla_backend_optimization_level": "3"}
_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\(")


def compile_program(
    function: Callable[..., Any],
    *avals: Any,
    target: str | Target = "sm_90",
    options: Mapping[str, Option] | None = None,
    kernels: Kernels = "all",
    lines: bool = False,
) -> Program:
    """Compile `function(*avals)` for `target` and return everything known about the result.

    Args:
        function: jitted, or a plain function (then it is jitted).
        avals: pytrees of `jax.ShapeDtypeStruct` or arrays, of which only shape and dtype are used.
        target: a name of `TARGETS`, or a Target.
        options: further XLA compiler options.
        kernels: which kernels to assemble and disassemble; "none" if only the program's figures are wanted.
        lines: source lines are wanted: nothing from the cache that was compiled from the same program on other lines.

    Raises:
        ToolsMissing: the extra `inspect` is not installed.
        ValueError: unknown target, or an argument that is no array.
    """
    gpu = find_target(target)
    if kernels not in ("all", "pallas", "none"):
        raise ValueError(f'kernels must be "all", "pallas" or "none", got {kernels!r}.')
    if reason := tools.missing():
        raise tools.ToolsMissing(reason)
    sharding = jax.sharding.SingleDeviceSharding(_device(gpu))
    arguments = jax.tree.map(lambda leaf: aval(leaf, sharding), avals)
    jitted: Any = function if hasattr(function, "lower") else jax.jit(function)
    with compile_for(gpu.name):
        lowered = jitted.lower(*arguments)
        chosen = _OPTIONS | {name: _option(value) for name, value in (options or {}).items()}
        inputs = {**chosen, "kernels": kernels, "XLA_FLAGS": os.environ.get("XLA_FLAGS", "")}
        name = cache.key(lowered.as_text(debug_info=lines), gpu.target_config(), inputs, tools.versions())
        artefacts = cache.load(name)
        if artefacts is None:
            artefacts = _compile(lowered, gpu, chosen, kernels)
            cache.store(name, artefacts)
    return Program(gpu, artefacts)


def aval(leaf: Any, sharding: jax.sharding.Sharding | None = None) -> jax.ShapeDtypeStruct:
    """Shape and dtype of an argument, placed by `sharding`.

    Raises:
        ValueError: no array.
    """
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        raise ValueError(
            f"arguments must be pytrees of jax.ShapeDtypeStruct or arrays, got {leaf!r}; "
            "bind static arguments with functools.partial."
        )
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding, weak_type=getattr(leaf, "weak_type", False))


def _option(value: Option) -> str | bool:
    return value if isinstance(value, bool) else str(value)


@remembered
def _device(target: Target) -> Any:
    # Without a driver the plugin's own check of the CUDA installation would keep it from registering.
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    try:
        return _topology(target)
    except NotImplementedError:
        # jax looked for plugins earlier in this process, without that variable.
        importlib.import_module(tools.plugin_module()).initialize()
        return _topology(target)


def _topology(target: Target) -> Any:
    description = topologies.get_topology_desc(
        platform="cuda", topology_name="", topology="1x1x1", target_config=target.target_config()
    )
    return description.devices[0]


def _compile(
    lowered: jax.stages.Lowered, target: Target, options: Mapping[str, str | bool], kernels: Kernels
) -> Artefacts:
    with tempfile.TemporaryDirectory(prefix="inspect_") as name:
        folder = Path(name)
        begun = _cpu_seconds()
        compiled = lowered.compile(
            compiler_options={
                **options,
                "xla_gpu_cuda_data_dir": str(tools.cuda_data_directory()),
                "xla_dump_to": str(folder / "dump"),
                # From jax 0.11 on PTX is written only if asked for.
                **({"xla_dump_emitter_re": "ptx"} if jax.__version_info__ >= (0, 11) else {}),
            }
        )
        seconds = _cpu_seconds() - begun
        text = compiled.as_text()
        memory = compiled.memory_analysis()
        if text is None or memory is None:
            raise RuntimeError("the compiler returned no HLO or no memory figures")
        dump = sorted((folder / "dump").iterdir())
        thunks = "\n".join(file.read_text() for file in dump if file.name.endswith("thunk_sequence.txt"))
        emitted = _entries(file.read_text() for file in dump if file.suffix == ".ptx")
        ptx = _selected(emitted, text, thunks, kernels)
        reports, disassemblies = {}, {}
        for kernel, source in ptx.items():
            reports[kernel] = sass.assemble(source, target, folder / "kernel.cubin")
            disassemblies[kernel] = sass.disassemble(folder / "kernel.cubin")
    return Artefacts(
        hlo=text,
        thunks=thunks,
        ptx=ptx,
        assembler_reports=reports,
        disassemblies=disassemblies,
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        alias_bytes=memory.alias_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        cpu_seconds=seconds,
    )


def _cpu_seconds() -> float:
    """CPU time of this process, all its threads, and of the programs it has run."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _entries(modules: Iterable[str]) -> dict[str, str]:
    return {entry: module for module in modules for entry in _ENTRY.findall(module)}


def _selected(emitted: Mapping[str, str], text: str, thunks: str, kernels: Kernels) -> dict[str, str]:
    """PTX of the kernels to look at, by name, in the order of their first launch."""
    launched = [name for name in geometries(thunks) if name in emitted]
    pallas = {launch.kernel for launch in hlo.traffic(text).launches if launch.kind == "pallas"}
    lost = [name for name in sorted(pallas) if not any(hlo.runs(name, kernel) for kernel in launched)]
    if lost or (emitted and not launched):
        raise RuntimeError(
            f"XLA wrote down {len(emitted)} kernels and {len(launched)} launches of them, none of {lost}: "
            "the format of its dump is not the one known here."
        )
    if kernels == "none":
        return {}
    if kernels == "pallas":
        launched = [kernel for kernel in launched if any(hlo.runs(name, kernel) for name in pallas)]
    return {name: emitted[name] for name in launched}
