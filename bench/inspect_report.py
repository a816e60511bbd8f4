"""The record of suite `ops` of `inspect` as plain-text tables."""

from collections.abc import Iterator

from bench.report import table

_KERNEL = ("tokens", "chunks", "registers", "spills", "stack", "shared", "blocks/SM")


def text(record: dict) -> str:
    """The whole report: per target the problems in detail, then a table of all; the targets last."""
    sections = [_header(record)]
    for target in record["targets"]:
        sections.append(f"{target['target']}: {target['card']}")
        for entry in target["specs"]:
            if entry["xla"] is not None:
                sections += [_problem(entry), _programs(entry), _kernels(entry), _work(entry)]
        sections.append(_presets(target))
    sections += [targets for target in record["targets"] if (targets := _targets(target))]
    return "\n\n".join(sections)


def _header(record: dict) -> str:
    return "\n".join(
        [
            ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
            "Compiled without a GPU: nothing was run or timed on one; times are a model.",
            "moved: operands + results of every launch of the compiled program; issued: the same with the loads and",
            "stores that the kernels really issue, counted by running one group of one sequence through the Triton IR",
            "interpreter, times batch x groups. Registers, spills (bytes) and stack (bytes) are per thread, shared",
            "memory (bytes) is per block. GB and MB are powers of ten.",
        ]
    )


def _problem(entry: dict) -> str:
    spec = entry["spec"]
    options = [option for option in ("mask", "segments", "state") if spec[option]]
    sizes = f"B = {spec['batch']}, L = {spec['length']}, D = {spec['features']}, G = {spec['groups']}"
    return f"{spec['name']}: timestep_norm, {', '.join([sizes, spec['dtype'], spec['statistics'], *options])}"


def _programs(entry: dict) -> str:
    rows = []
    for mode in entry["kernels"]:
        for name, key in (("kernel", "kernels"), ("XLA reference", "xla")):
            program = entry[key][mode]
            rows.append([mode, name, *_bytes(program), str(program["launches"]), *_memory(program)])
    return table(["program", "", "GB moved", "GB issued", "launches", "temp MB", "largest MB"], rows, left=2)


def _kernels(entry: dict) -> str:
    rows = []
    for mode, kernel in _each(entry):
        counts = [str(kernel[key]) for key in ("fused_multiply_adds", "tensor_instructions")]
        rows.append([mode, kernel["name"], *_resources(kernel), kernel["limiter"], *counts])
    header = ["program", "kernel", *_KERNEL, "limited by", "FFMA", "MMA"]
    return table(header, rows, left=2)


def _work(entry: dict) -> str:
    rows = []
    for mode, kernel in _each(entry):
        work = kernel["work"]
        rows.append(
            [
                mode,
                kernel["name"],
                str(work["instructions"]),
                str(work["tiles"]),
                f"{work['per_element']:.1f}",
                f"{work['bytes_moved'] / 1e6:.1f}",
                f"{work['bytes_issued'] / 1e6:.1f}",
                f"{work['bytes_issued'] / work['bytes_moved']:.3f}",
                f"{work['issue_us']:.1f}",
                f"{work['memory_us']:.1f}",
                work["unit"],
            ]
        )
    header = ["program", "kernel", "SASS/tile", "tiles", "SASS/element", "MB moved", "MB issued", "issued/moved"]
    header += ["issue us", "memory us", "busiest unit"]
    return table(header, rows, left=2)


def _presets(target: dict) -> str:
    """One row per kernel; the figures of a program stand on the row of its first."""
    rows = []
    for entry in target["specs"]:
        name = entry["spec"]["name"]
        for mode, program in entry["kernels"].items():
            figures = [f"{program['bytes_moved'] / 1e6:.1f}", str(program["launches"]), *_memory(program)]
            for kernel in program["kernels"]:
                rows.append([name, mode, *figures, kernel["name"].removeprefix("timestep_norm_"), *_resources(kernel)])
                name, mode, figures = "", "", [""] * len(figures)
    header = ["spec", "program", "MB moved", "launches", "temp MB", "largest MB", "kernel", *_KERNEL]
    return f"presets, {target['target']}\n{table(header, rows, left=2)}"


def _targets(target: dict) -> str:
    return "\n".join(
        f"target {target['target']}, {verdict['target']}: {'met' if verdict['met'] else 'MISSED'} "
        f"({verdict['figure']:.3f})"
        for verdict in target["verdicts"]
    )


def _each(entry: dict) -> Iterator[tuple[str, dict]]:
    for mode, program in entry["kernels"].items():
        for kernel in program["kernels"]:
            yield mode, kernel


def _bytes(program: dict) -> list[str]:
    issued = program["bytes_issued"]
    return [f"{program['bytes_moved'] / 1e9:.3f}", "-" if issued is None else f"{issued / 1e9:.3f}"]


def _memory(program: dict) -> list[str]:
    return [f"{program[key] / 1e6:.3f}" for key in ("temporary_bytes", "largest_intermediate")]


def _resources(kernel: dict) -> list[str]:
    keys = ("tokens", "chunks", "registers", "spill_bytes", "stack_bytes", "shared_bytes", "blocks")
    return [str(kernel[key]) for key in keys]
