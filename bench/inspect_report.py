"""The record of suite `ops` of `inspect` as plain-text tables."""

from collections.abc import Iterator
from itertools import groupby

from bench.report import table

_KERNEL = ("registers", "spills", "stack", "shared", "blocks/SM")


def text(record: dict) -> str:
    """The whole report: per target and op the problems in detail, then a table of all; the targets last."""
    sections = [_header(record)]
    for target in record["targets"]:
        sections.append(f"{target['target']}: {target['card']}")
        for op, entries in groupby(target["specs"], lambda entry: entry["op"]):
            sections += _op(f"{op}, {target['target']}", list(entries))
    verdicts = ((target["target"], entry) for target in record["targets"] for entry in target["specs"])
    return "\n\n".join([*sections, *(_targets(*pair) for pair in verdicts if pair[1]["verdicts"])])


def _header(record: dict) -> str:
    return "\n".join(
        [
            ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
            "Compiled without a GPU: nothing was run or timed on one; times are a model.",
            "moved: operands + results of every launch of the compiled program; issued: the same with the loads and",
            "stores that the kernels really issue, counted by running some of their programs through the Triton IR",
            "interpreter, with no document that begins or ends inside a sequence; cached: of it, loads of small arrays",
            "(coefficients, weights, marks of tokens) that many programs read. Registers, spills (bytes) and stack",
            "(bytes) are per thread, shared memory (bytes) is per block. CPU s: what the compilers took when the",
            "program was compiled, perhaps in an earlier run. GB and MB are powers of ten.",
        ]
    )


def _op(title: str, entries: list[dict]) -> list[str]:
    sections = [f"{title}\n{'=' * len(title)}"]
    for entry in entries:
        if entry["others"]:
            heading = f"{entry['spec']['name']}: {entry['op']}, {entry['problem']}"
            tables = (_programs(entry), _kernels(entry), _work(entry), _products(entry), _seconds(entry))
            sections += [heading, *filter(None, tables)]
    return [*sections, f"presets of {title}\n{_presets(entries)}"]


def _programs(entry: dict) -> str:
    rows = []
    for mode, program in entry["kernels"].items():
        for name, other in (("kernel", program), *((name, modes[mode]) for name, modes in entry["others"].items())):
            issued = [_gigabytes(other[key]) for key in ("bytes_moved", "bytes_issued", "bytes_cached")]
            rows.append([mode, name, *issued, str(other["launches"]), *_memory(other), f"{other['cpu_seconds']:.1f}"])
    header = ["program", "", "GB moved", "GB issued", "cached", "launches", "temp MB", "largest MB", "CPU s"]
    return table(header, rows, left=2)


def _kernels(entry: dict) -> str:
    rows = []
    for mode, kernel in _each(entry):
        counts = [str(kernel[key]) for key in ("fused_multiply_adds", "tensor_instructions")]
        rows.append([mode, kernel["name"], *_resources(kernel), kernel["limiter"], *counts])
    header = ["program", "kernel", *_tile([entry]), *_KERNEL, "limited by", "FFMA", "MMA"]
    return table(header, rows, left=2)


def _work(entry: dict) -> str:
    rows = []
    for mode, kernel in _each(entry):
        work = kernel["work"]
        if work is None:
            continue
        rows.append(
            [
                mode,
                kernel["name"],
                *(str(work[key]) for key in ("instructions", "fused", "products", "sums", "tiles")),
                f"{work['per_element']:.1f}",
                *(f"{work[key] / 1e6:.1f}" for key in ("bytes_moved", "bytes_issued", "bytes_cached")),
                f"{work['issue_us']:.1f}",
                f"{work['memory_us']:.1f}",
                work["unit"],
            ]
        )
    header = ["program", "kernel", "SASS/tile", "FFMA", "FMUL", "FADD", "tiles", "SASS/element"]
    header += ["MB moved", "MB issued", "cached", "issue us", "memory us", "busiest unit"]
    return table(header, rows, left=2) if rows else ""


def _products(entry: dict) -> str:
    rows = []
    for mode, kernel in _each(entry):
        done = kernel["products"]
        if done is None:
            continue
        rows.append(
            [
                mode,
                kernel["name"],
                f"{done['multiply_adds'] / 1e9:.2f}",
                *(f"{done[key] / 1e6:.1f}" for key in ("bytes_moved", "bytes_issued")),
                f"{done['multiply_adds'] / done['bytes_issued']:.1f}",
                f"{done['tensor_us']:.0f}",
                f"{done['memory_us']:.0f}",
            ]
        )
    for mode, program in entry["kernels"].items():
        if rows and program["multiply_adds"]:
            least = entry["least_multiply_adds"][mode]
            counts = (f"{count / 1e9:.2f}" for count in (program["multiply_adds"], least))
            rows.append([mode, "all", next(counts), f"least {next(counts)}", *[""] * 4])
    header = ["program", "kernel", "G multiply-adds", "MB moved", "MB issued", "each byte", "tensor us", "memory us"]
    return table(header, rows, left=2) if rows else ""


def _seconds(entry: dict) -> str:
    each = ", ".join(f"{kernel} {spent:.1f}" for kernel, spent in entry["kernel_seconds"].items())
    return f"CPU s of the compilers for each kernel of forward+backward alone: {each}"


def _presets(entries: list[dict]) -> str:
    """One row per kernel; the figures of a program stand on the row of its first."""
    rows = []
    for entry in entries:
        name = entry["spec"]["name"]
        for mode, program in entry["kernels"].items():
            figures = [f"{program['bytes_moved'] / 1e6:.1f}", str(program["launches"]), *_memory(program)]
            figures.append(f"{program['cpu_seconds']:.1f}")
            for kernel in program["kernels"]:
                rows.append([name, mode, *figures, kernel["name"].removeprefix(f"{entry['op']}_"), *_resources(kernel)])
                name, mode, figures = "", "", [""] * len(figures)
    header = ["spec", "program", "MB moved", "launches", "temp MB", "largest MB", "CPU s", "kernel"]
    header += [*_tile(entries), *_KERNEL]
    return table(header, rows, left=2)


def _targets(target: str, entry: dict) -> str:
    return "\n".join(
        f"target {target}, {entry['op']}, {entry['spec']['name']}, {verdict['target']}: "
        f"{'met' if verdict['met'] else 'MISSED'} ({verdict['figure']:.3f})"
        for verdict in entry["verdicts"]
    )


def _each(entry: dict) -> Iterator[tuple[str, dict]]:
    for mode, program in entry["kernels"].items():
        for kernel in program["kernels"]:
            yield mode, kernel


def _gigabytes(bytes_: int | None) -> str:
    return "-" if bytes_ is None else f"{bytes_ / 1e9:.3f}"


def _memory(program: dict) -> list[str]:
    return [f"{program[key] / 1e6:.3f}" for key in ("temporary_bytes", "largest_intermediate")]


def _resources(kernel: dict) -> list[str]:
    keys = ("registers", "spill_bytes", "stack_bytes", "shared_bytes", "blocks")
    return [*map(str, kernel["tile"].values()), *(str(kernel[key]) for key in keys)]


def _tile(entries: list[dict]) -> list[str]:
    """Names of what the programs of an op work on."""
    return list(next(kernel for _, kernel in _each(entries[0]))["tile"])
